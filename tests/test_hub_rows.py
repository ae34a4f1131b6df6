"""Rows of the Hub, from a Hub on this machine: equal to those of the official files, cached, pinned, and every failure in a sentence."""

import json
import shutil
from pathlib import Path

import pyarrow
import pytest
from hub_data import GLUE, NLG, parts, write_hub, write_official, write_parquet
from hub_server import HubServer, Machine
from pyarrow import parquet
from test_hub import FAST, skipped, sources

from lora_drop.cli import app as cli
from lora_drop.files import file_digest, read_json
from lora_drop.tasks.glue import official_score

pytestmark = pytest.mark.slow

TRICKY = ("stsb", "mrpc", "dialogsum", "dart")
"""Tasks whose files are not what they seem: scores of many digits, a byte-order mark, line ends and characters of all kinds."""
COMPARE = """
import json
from pathlib import Path
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source

hub = Source(None)
for name, splits in {splits!r}.items():
    task = TASKS.get(name)
    for split in splits:
        files, rows = (task.load(source, split) for source in (Source(Path({official!r})), hub))
        assert rows.column_names == files.column_names and len(rows) == len(files), (name, split, len(rows), len(files))
        wrong = [pair for column in rows.column_names for pair in zip(rows[column], files[column]) if pair[0] != pair[1]]
        assert not wrong, (name, split, len(wrong), wrong[:3])
print(json.dumps(hub.origins))
"""


ROWS = """
import json
from lora_drop.errors import UserError
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.splits import open_split

source = Source(None, offline={offline})
try:
    rows = [row["x"] for _, row in open_split("{path}", "train", source).rows()]
    print(json.dumps([rows, source.origins["train"].get("configuration")]))
except UserError as error:
    print(json.dumps([str(error), None]))
"""


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    write_official(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, official):
    root = tmp_path_factory.mktemp("hub")
    write_hub(root / "template", official)
    with HubServer(root) as hub, Machine(hub.env(root / "home", **FAST)) as machine:
        yield hub, machine


@pytest.fixture
def hub(served, tmp_path):
    """The Hub as it was, but with commits that no test has seen before, and empty caches."""
    hub = served[0]
    for memory in (hub.faults, hub.requests, hub.readers, hub.gated):
        memory.clear()
    for folder in ("home", "datasets"):
        shutil.rmtree(hub.root / folder, ignore_errors=True)
    shutil.copytree(hub.root / "template" / "datasets", hub.root / "datasets")
    with (glue(hub) / "README.md").open("a") as card:
        card.write(f"\n{tmp_path.name}\n")
    return hub


@pytest.fixture
def machine(served):
    return served[1]


@pytest.fixture
def sample(tmp_path):
    """The cheapest command that reads training rows."""
    return ("sample", "-d", tmp_path / "run", "-o", "task=rte", "-o", "backbone=tiny:bert", "-o", "offline=false")


def glue(hub) -> Path:
    return hub.root / "datasets" / "nyu-mll" / "glue"


def change_rows(hub) -> None:
    """Let the Hub's RTE lose its last training row."""
    path = glue(hub) / "rte" / "train-00000-of-00001.parquet"
    table = parquet.read_table(path)
    write_parquet(path, table.slice(0, len(table) - 1))


def compare(machine, official: Path, tasks=(*GLUE, *NLG)) -> dict:
    """Compare all rows that there are of both kinds; return where those of the Hub came from."""
    splits = {task: [split for split, name in parts(task).items() if (official / name).is_file()] for task in tasks}
    compared = machine.python(COMPARE.format(splits=splits, official=str(official)))
    assert compared.code == 0, compared.err
    return json.loads(compared.out)


def test_rows_equal_those_of_the_official_files(hub, machine, official):
    origins = compare(machine, official)
    parquet_branch = "refs/convert/parquet"
    commit = hub.commit("datasets", "GEM/dart", parquet_branch)
    assert origins["test"] == {
        "hub": "knkarthick/dialogsum",
        "configuration": "default",
        "revision": "main",
        "commit": hub.commit("datasets", "knkarthick/dialogsum"),
    }
    assert hub.asked(f"/GEM/dart/resolve/{commit}/default/train") and hub.leaks() == []
    assert not hub.asked("GET .*[.]py")  # the loading scripts of the main branches


def test_own_data_may_be_a_data_set_of_the_hub(hub, machine, tmp_path):
    run = ["run", "-d", tmp_path / "run", "-b", "tiny:bert", "-o", "train.epochs=1", "--device", "cpu"]
    done = machine(*run, "--data", "nyu-mll/glue:rte", "--validation", "validation")
    assert done.code == 0, done.err
    manifest = read_json(tmp_path / "run" / "run.json")
    commit = hub.commit("datasets", "nyu-mll/glue")
    assert {origin["commit"] for name, origin in manifest["stages"]["eval"]["sources"].items()} == {commit}
    record = read_json(tmp_path / "run" / "adapter" / "task.json")
    assert record["texts"] == ["sentence1", "sentence2"] and record["labels"] == ["0", "1"]
    missing = machine(*run, "--data", "nyu-mll/none")
    assert missing.code == 2 and "nyu-mll/none" in missing.err


def rows_of(machine, path, offline=False):
    """Return the rows of a data set with one column, its configuration by `run.json`, and else the message."""
    read = machine.python(ROWS.format(path=path, offline=offline))
    assert read.code == 0, read.err
    return json.loads(read.out)


def test_a_name_in_capitals_is_found_in_the_cache(hub, machine):
    write_parquet(hub.root / "datasets" / "acme" / "MyRows" / "train.parquet", pyarrow.table({"x": ["one"]}))
    fetched, cached = (rows_of(machine, "acme/MyRows", offline) for offline in (False, True))
    assert fetched == cached and cached[0] == ["one"]


@pytest.mark.parametrize("default", [True, False])
def test_a_configuration_that_is_cached_stands_for_no_other(default, hub, machine):
    folder = hub.root / "datasets" / "acme" / "Two"
    for name in ("a", "b"):
        write_parquet(folder / name / "train.parquet", pyarrow.table({"x": [f"of {name}"]}))
    mark = "  default: true\n" if default else ""
    first = f"- config_name: a\n  data_files: a/train.parquet\n{mark}"
    (folder / "README.md").write_text(f"---\nconfigs:\n{first}- config_name: b\n  data_files: b/train.parquet\n---\n")
    assert rows_of(machine, "acme/Two:b") == [["of b"], "b"]
    message, _ = rows_of(machine, "acme/Two", offline=True)
    assert "This machine has the rows of b: name one, as in acme/Two:b" in message
    if default:
        assert rows_of(machine, "acme/Two") == [["of a"], "a"] == rows_of(machine, "acme/Two", offline=True)
    else:
        message, _ = rows_of(machine, "acme/Two")
        assert "has the configurations a, b, none of which is the default. Name one, as in acme/Two:a" in message
    assert rows_of(machine, "acme/Two:b", offline=True) == [["of b"], "b"]


def test_real_rows_equal_those_of_the_official_files(tmp_path, data_dir):
    write_hub(tmp_path / "hub", data_dir, TRICKY)
    with HubServer(tmp_path / "hub") as hub, Machine(hub.env(tmp_path / "home")) as machine:
        compare(machine, data_dir, TRICKY)


def test_scores_are_those_of_the_official_file():
    assert official_score(3.799999952316284) == 3.8
    assert official_score(2.1111111640930176) == 2.11111111111111
    assert official_score(4.0) == 4.0
    assert official_score(0.1234567) == 0.1234567


def test_a_run_says_where_its_rows_came_from(hub, machine, official, tmp_path):
    run = (
        "run",
        "-d",
        tmp_path / "run",
        "-o",
        "task=rte",
        "-o",
        "backbone=tiny:bert",
        "-o",
        "method.name=lora",
        "-o",
        "offline=false",
    )
    fetched = machine(*run, "-o", "train.epochs=1", "--device", "cpu")
    assert not skipped(fetched)
    origin = {
        "hub": "nyu-mll/glue",
        "configuration": "rte",
        "revision": "main",
        "commit": hub.commit("datasets", "nyu-mll/glue"),
    }
    assert sources(tmp_path) == {"train": origin, "validation": origin}

    hub.requests.clear()
    assert skipped(machine(*run, "--offline")) == {"train", "eval"} and hub.asked() == []
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        with Machine(hub.env(hub.root / "home", **environment)) as alone:
            assert skipped(alone(*run)) == {"train", "eval"}
            lacking = alone(*run, "-o", "task=cola", "-d", tmp_path / "cola")
            assert lacking.code == 2 and "put the official file at <data folder>/glue/CoLA" in lacking.err

    assert skipped(machine(*run, "--data-dir", official)) == {"train", "eval"}  # the same rows
    assert not skipped(machine(*run, "--data-dir", official, "--force"))
    file = "glue/RTE/train.tsv"
    assert sources(tmp_path)["train"] == {"file": file, "content": file_digest(official / file)}


def test_cached_rows_are_kept_until_others_are_named(hub, machine, sample, tmp_path):
    assert not skipped(machine(*sample))
    first = hub.commit("datasets", "nyu-mll/glue")
    change_rows(hub)
    second = hub.commit("datasets", "nyu-mll/glue")
    kept = machine(*sample)
    assert skipped(kept) == {"sample"} and f"To use it: -o data_revision={second}" in kept.err
    assert machine(*sample, "-o", "task=cola").code == 0
    assert sources(tmp_path)["train"]["commit"] == first  # one commit for all tasks of a branch

    taken = machine(*sample, "-o", f"data_revision={second}")
    assert not skipped(taken) and read_json(tmp_path / "run" / "sample.json")["population"] == 5
    back = machine(*sample, "-o", f"data_revision={first}", "--offline")
    assert not skipped(back) and read_json(tmp_path / "run" / "sample.json")["population"] == 6
    assert sources(tmp_path)["train"] == {
        "hub": "nyu-mll/glue",
        "configuration": "rte",
        "revision": first,
        "commit": first,
    }
    assert "data_revision: " + first in (tmp_path / "run" / "config.yaml").read_text()


def test_a_new_readme_is_not_told(hub, machine, sample):
    assert not skipped(machine(*sample))
    with (glue(hub) / "README.md").open("a") as card:
        card.write("\nexplained\n")
    read = machine(*sample)
    assert skipped(read) == {"sample"} and "note: nyu-mll" not in read.err


@pytest.mark.parametrize(
    ("match", "what", "text"),
    [
        ("GET /api/datasets", {"status": 429}, "asks you to wait (429, too many requests). Wait a few minutes."),
        (
            "GET /api/datasets",
            {"status": 500},
            "has an internal error (500) and cannot provide the data set nyu-mll/glue",
        ),
        ("GET /api/datasets", {"delay": 3}, "has not answered in time (ReadTimeout) for the data set nyu-mll/glue"),
        ("HEAD .*README.md", {"status": 403}, "denies you access to the data set nyu-mll/glue (403"),
        ("HEAD .*rte/train", {"status": 403}, "denies you access to the data set nyu-mll/glue (403"),
        ("GET /_large/", {"status": 503}, "has an internal error (503) and cannot provide the data set nyu-mll/glue"),
        ("GET /_large/", {"cut": 0}, "The transfer of the data set nyu-mll/glue was interrupted"),
    ],
)
def test_what_goes_wrong_is_said_and_the_same_command_goes_on(hub, machine, sample, match, what, text):
    hub.fault(match, **what)
    wrong = machine(*sample)
    assert wrong.code == 2 and text in wrong.err, wrong.err
    (said,) = [line for line in wrong.err.splitlines() if "  …  " not in line]  # that is what takes long
    assert said.startswith("Error: ")
    hub.faults.clear()
    assert machine(*sample).code == 0


def test_who_may_read_what(hub, machine, sample):
    hub.readers["nyu-mll/glue"] = {"hf_good"}
    stranger = machine(*sample)
    assert (
        stranger.code == 2
        and "has no data set nyu-mll/glue, or it is private and you are not logged in" in stranger.err
    )
    hub.readers.clear()
    hub.gated["nyu-mll/glue"] = {"hf_good"}
    refused = machine(*sample, HF_TOKEN="hf_bad")
    assert refused.code == 2 and f"Accept them at {hub.url}/datasets/nyu-mll/glue" in refused.err
    allowed = machine(*sample, HF_TOKEN="hf_good")
    assert allowed.code == 0, allowed.err
    assert hub.asked("GET /_large/") and hub.leaks() == []
    for revision, text in (("v2", "has no revision 'v2'"), ("a b", "'a b' is not a revision")):
        wrong = machine(*sample, "-o", f"data_revision={revision}", HF_TOKEN="hf_good")
        assert wrong.code == 2 and text in wrong.err


def test_other_columns_are_said(hub, machine, sample):
    for path in (glue(hub) / "rte").iterdir():
        write_parquet(path, parquet.read_table(path).rename_columns(["premise", "sentence2", "label", "idx"]))
    wrong = machine(*sample)
    assert wrong.code == 2 and "has no column 'sentence1', only premise, sentence2, label, idx" in wrong.err


def test_the_habit_of_the_machine_falls_back_to_the_hub_with_a_notice(hub, machine, sample, official, tmp_path):
    (tmp_path / "data").mkdir()
    read = machine(*sample, LORA_DROP_DATA=str(tmp_path / "data"))
    assert read.code == 0 and "train.tsv does not exist: the train rows are on the Hub (nyu-mll/glue (rte))" in read.err
    near = machine(*sample, LORA_DROP_DATA=str(official / "glue"))
    assert near.code == 0 and f"Did you mean --data-dir {official}?" in near.err
    hub.requests.clear()
    assert machine(*sample, LORA_DROP_DATA=str(official)).code == 0 and hub.asked() == []
    pinned = ("-o", "data_revision=main")
    assert not skipped(machine(*sample, *pinned, "--force", LORA_DROP_DATA=str(official)))
    assert sources(tmp_path)["train"]["hub"] == "nyu-mll/glue"
    both = machine(*sample, *pinned, "--data-dir", official)
    assert both.code == 2 and "data_revision=main exclude each other" in both.err


@pytest.mark.parametrize(
    ("inside", "named", "hint"),
    [
        ("data", "data/glue", "Did you mean --data-dir {folder}/data?"),
        ("data", "data/glue/RTE", "Did you mean --data-dir {folder}/data?"),
        ("data", ".", "Did you mean --data-dir {folder}/data?"),
        ("glue_data", "glue_data/glue_data", "rename it to glue and name the folder above it"),
        ("data", "data/dialogsum/empty", "must contain glue/RTE/train.tsv"),
    ],
)
def test_a_folder_that_was_named_must_hold_the_files(official, tmp_path, capsys, inside, named, hint):
    shutil.copytree(official, tmp_path / inside)
    if inside == "glue_data":
        (tmp_path / inside / "glue").rename(tmp_path / inside / "glue_data")
    (tmp_path / named).mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                "sample",
                "-d",
                str(tmp_path / "run"),
                "-o",
                "task=rte",
                "-o",
                "backbone=tiny:bert",
                "--data-dir",
                str(tmp_path / named),
            ]
        )
    message = capsys.readouterr().err
    assert end.value.code == 2 and hint.format(folder=tmp_path) in message
    assert "RTE/train.tsv does not exist" in message and "Without --data-dir the rows come from the Hub" in message


def test_a_folder_with_the_files_of_other_tasks_is_no_reason_to_ask_the_hub(official, tmp_path, capsys):
    shutil.copytree(official / "dialogsum", tmp_path / "data" / "dialogsum")
    for task in ("rte", "e2e"):
        with pytest.raises(SystemExit) as end:
            cli.main(
                [
                    "sample",
                    "-d",
                    str(tmp_path / "run"),
                    "-o",
                    f"task={task}",
                    "-o",
                    "backbone=tiny:llama",
                    "--data-dir",
                    str(tmp_path / "data"),
                ]
            )
        assert end.value.code == 2 and "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", "--data-dir", str(tmp_path / "data"), "--json"])
    rows = {row["task"]: row["read from"] for row in json.loads(capsys.readouterr().out)}
    assert rows["rte"].startswith("nowhere") and rows["dialogsum"] == str(tmp_path / "data")
