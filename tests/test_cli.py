"""The real command line, in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from lora_drop.cli import app as cli
from lora_drop.cli.inspection import count_methods, diagnose
from lora_drop.config.loading import load_config
from lora_drop.errors import UserError

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "matplotlib",
    "sklearn",
    "scipy",
    "numpy",
    "pandas",
    "pyarrow",
    "evaluate",
)
METRICS = ("evaluate", "sacrebleu", "rouge_score", "nltk")


def lora_drop(*arguments, **environment):
    command = [sys.executable, "-m", "lora_drop.cli.app", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, **environment}, check=False
    )


def imported_by(*arguments, among=HEAVY) -> tuple[int, set[str]]:
    """Run the command line in a process that says at its end which of some packages it has imported."""
    code = f"""
import sys
from lora_drop.cli.app import main
try:
    main({[str(argument) for argument in arguments]!r})
except SystemExit as end:
    print("CODE", end.code, [name for name in {among!r} if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    line = process.stdout.strip().splitlines()[-1]
    _, status, names = line.split(" ", 2)
    return int(status), set(json.loads(names.replace("'", '"')))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["reproduce", "--help"], 0),
        (["config"], 0),
        (["reproduce", "list"], 0),
        (["run", "-d", "x", "-o", "train.epoch=3"], 2),
        (["run", "-d", "x", "-c", "nowhere"], 2),
        (["nonsense"], 2),
    ],
)
def test_help_and_configuration_errors_import_nothing_heavy(arguments, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert imported_by(*arguments) == (code, set())
    assert not list(tmp_path.iterdir())


def test_help_imports_neither_what_draws_nor_what_reads_a_configuration():
    among = (*HEAVY, "rich.console", "pydantic", "yaml", "lora_drop.config.schema")
    for arguments in (["--help"], ["run", "--help"], ["reproduce", "-h"]):
        assert imported_by(*arguments, among=among) == (0, set())


@pytest.mark.slow
def test_stages_import_only_what_they_use(tmp_path):
    common = ["-d", str(tmp_path / "run"), "-q"]
    small = ["-o", "backbone=tiny:bert", "--limit-train", "40", "--device", "cpu"]
    among = (*METRICS, "matplotlib")
    assert imported_by("sample", *common, *small, among=among) == (0, set())
    assert imported_by("score", *common, among=among) == (0, set())
    assert imported_by("select", *common, among=(*among, *HEAVY)) == (0, set())
    assert imported_by("picture", *common, among=("torch", "transformers", "peft")) == (0, set())
    assert (tmp_path / "run" / "importance.png").is_file()


def test_commands_without_a_model_import_no_model(tmp_path):
    heavy = ("torch", "transformers", "peft", "matplotlib", "scipy", *METRICS)
    assert imported_by("tasks", "--offline", among=heavy) == (0, set())
    assert imported_by("reproduce", "list", among=(*heavy, "numpy")) == (0, set())
    shutil.copytree(Path(__file__).parent.parent / "results" / "smollm2", tmp_path / "results" / "smollm2")
    assert imported_by("report", "--results", tmp_path / "results", "--no-figures", "-q", among=heavy) == (0, set())


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"lora-drop {version('lora-drop')}\n"
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin"])
    assert end.value.code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(shell, monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as end:
        cli.main(["--show-completion", shell])
    assert end.value.code == 0 and f"COMPLETE=complete_{shell}" in capsys.readouterr().out


def test_what_the_shell_asks_is_answered():
    script = "from lora_drop.cli.app import app; app(prog_name='lora-drop')"

    def answers(words):
        asked = {"_LORA_DROP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked}, check=False)
        return done.stdout.split()

    assert answers("lora-drop s") == ["sample", "score", "select"] and answers("lora-drop run --bo") == ["--bootstrap"]


def test_the_schema_of_a_configuration_file_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["config", "--schema"])
    whole = capsys.readouterr().out
    assert end.value.code == 0 and "train" in json.loads(whole)["properties"]
    with pytest.raises(SystemExit):
        cli.main(["config", "--schema", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(whole)


def test_importing_the_package_imports_nothing_heavy():
    code = f"import lora_drop, sys; print([name for name in {HEAVY!r} if name in sys.modules]); lora_drop.select"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.slow
def test_a_run_ends_with_a_machine_readable_line(tmp_path):
    small = [
        "-o",
        "backbone=tiny:bert",
        "-o",
        "train.epochs=1",
        "--limit-train",
        "40",
        "--limit-eval",
        "20",
        "--seed",
        "4",
        "--device",
        "cpu",
    ]
    process = lora_drop("run", "-d", tmp_path / "run", *small, "--compare", "lora", "--json")
    assert process.returncode == 0, process.stderr
    last = json.loads(process.stdout)
    assert [row["method"] for row in last["results"]] == ["LoRA-drop", "LoRA"]
    assert last["results"][0]["limited"] == {"train": 40, "eval": 20} and last["results"][0]["seed"] == 4
    assert {row["projection"] for row in last["scores"]} == set(last["selection"]["projections"]) == {"query", "value"}
    assert last["results"][0]["epoch"] == 1.0 and last["results"][0]["select_epoch"] == "best"
    assert "epoch 1 of 1: loss" in process.stderr and "limited to 40 of 1,600 train rows" in process.stderr
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr

    again = lora_drop("run", "-d", tmp_path / "run", "--quiet", "--json")
    assert again.returncode == 0 and again.stderr == ""
    assert json.loads(again.stdout)["results"] == last["results"][:1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "-d", "x", "-o", "task=colla"], "Did you mean 'cola'"),
        (["run", "-d", "x", "-o", "method.name=lora-drop"], "Did you mean 'lora_drop'"),
        (["run", "-d", "x", "-o", "backbone=tiny:brt"], "Did you mean 'tiny:bert'"),
        (["run", "-d", "x", "-o", "task=rte", "--offline"], "put the official file at <data folder>/glue/RTE"),
        (["run", "-d", "x", "-o", "eval.split=test"], "has no split 'test'"),
        (["run", "-d", "x", "--data-dir", "nowhere"], "does not exist (named by data_dir)"),
        (["run", "-d", "x", "--compare", "lorra", "-o", "backbone=tiny:bert"], "Did you mean 'lora'"),
        (["run", "-d", "x", "-o", "task=toy-nlg", "-o", "train.max_length=64"], "leaves no room for a prompt"),
        (["run", "-d", "x", "-o", "quantization=nf4", "--device", "cpu"], "quantization=nf4"),
        (["eval", "--task", "rte"], "Give either --run-dir"),
        (["eval", "--task", "rte", "--predictions", "nowhere"], "predictions nowhere does not exist"),
        (["eval", "-d", "x"], "does not exist. Make it with: lora-drop train"),
        (["select", "-d", "x"], "does not exist. Make it with: lora-drop sample"),
        (["train", "-d", "x", "-o", "backbone=tiny:bert"], "does not exist. Make it with: lora-drop sample"),
        (["score", "-d", "x", "-o", "backbone=tiny:bert"], "does not exist. Make it with: lora-drop sample"),
        (["picture", "-d", "x"], "does not exist. Make it with: lora-drop sample"),
        (["run", "-d", "x", "-o", "backbone=tiny:bert", "-o", "task=toy-nlg"], "it cannot continue a text"),
        (["run", "-d", "x", "--data", "nowhere.csv", "-b", "tiny:bert"], "nowhere.csv do not exist"),
        (["run", "-d", "x", "--data", "", "-b", "tiny:bert"], "--data is empty"),
        (["run", "-d", "x", "--data-dir", ""], "--data-dir is empty"),
        (["reproduce", "table1", "--seeds", ""], "--seeds is empty"),
        (["reproduce", "table1", "--tasks", " ,"], "--tasks is empty"),
        (["reproduce", "table1", "--methods", ","], "--methods is empty"),
        (["reproduce", "table1", "--results", __file__], "is not a folder. Name a folder with --results"),
        (["reproduce", "table1", "--runs", f"{__file__}/deep"], "is not a folder. Name a folder with --runs"),
        (["run", "-d", "x", "-o", "sample.ratio=2"], "must be in the range 0 < value ≤ 1"),
    ],
)
def test_mistakes_give_one_message_and_code_2(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORA_DROP_DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert text in message and message.count("Error") == 1 and "Traceback" not in message
    assert not list(tmp_path.iterdir()), "told before anything is written"


def test_anybodys_predictions_are_scored(tmp_path, capsys):
    (tmp_path / "out.txt").write_text("entailment\n" * 400)
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", "--task", "toy-nli", "--predictions", str(tmp_path / "out.txt"), "--json"])
    assert end.value.code == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["task"], scored["examples"], scored["metrics"]) == ("toy-nli", 400, {"accuracy": 0.5})


def test_a_published_output_gets_its_published_score(data_dir, capsys):
    path = data_dir / "system_outputs" / "e2e" / "tgen.tsv"
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", "--task", "e2e", "--predictions", str(path), "--data-dir", str(data_dir), "--json"])
    assert end.value.code == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["e2e_bleu"] == pytest.approx(65.93, abs=0.01)
    assert metrics["e2e_rouge_l"] == pytest.approx(68.50, abs=0.05)


@pytest.mark.slow
def test_a_budget_is_chosen_on_the_command_line(tmp_path):
    folder = tmp_path / "run"
    small = ["-o", "backbone=tiny:bert", "--limit-train", "40", "--device", "cpu", "-q"]
    for stage in ("sample", "score"):
        with pytest.raises(SystemExit) as end:
            cli.main([stage, "-d", str(folder), *small])
        assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        cli.main(["select", "-d", str(folder), "--budget", "0.5", "-q"])
    assert end.value.code == 0
    assert json.loads((folder / "selection.json").read_text())["trainable_parameters"] <= 0.5 * 4096


def test_the_generated_task_is_not_trained_on_without_a_word(tmp_path, capsys):
    settings = tmp_path / "settings.yaml"
    settings.write_text("backbone: tiny:bert\nlimit: {train: 40}\n")
    settings, word = ["-c", str(settings), "-o", "sample.ratio=0.5"], "training on the generated task toy-nli"
    for folder, given, told in (
        ("a", settings, True),
        ("a", [], False),  # the folder knows its task
        ("a", settings, True),
        ("b", [*settings, "-o", "task=toy-nli"], False),
        ("c", ["-c", "toy/toy-nli", *settings], False),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["sample", "-d", str(tmp_path / folder), *given])
        assert end.value.code == 0 and (word in " ".join(capsys.readouterr().err.split())) is told


def test_debug_shows_the_traceback():
    with pytest.raises(UserError, match="nowhere"):
        cli.main(["run", "-d", "x", "-c", "nowhere", "--debug"])


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_code_130(tmp_path):
    folder = tmp_path / "run"
    options = [
        "-o",
        "backbone=tiny:bert",
        "-o",
        "train.epochs=50",
        "--limit-train",
        "200",
        "--device",
        "cpu",
        "-o",
        "method.name=lora",
        "-q",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_drop.cli.app", "run", "-d", str(folder), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not list((folder / "checkpoints" / "train").glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "continues where it stopped" in stderr
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert list((folder / "checkpoints" / "train").glob("checkpoint-*/trainer_state.json"))


@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["typer", "lora_drop.cli.app", "numpy", "torch", "datasets", "transformers", "peft"])
def test_ctrl_c_while_libraries_are_loaded_ends_quietly(loaded, tmp_path):
    small = ["-o", "backbone=tiny:bert", "--limit-train", "40", "--device", "cpu", "-o", "method.name=lora"]
    command = [sys.executable, "-X", "importtime", "-m", "lora_drop", "run", "-d", tmp_path / "run", *small]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.split("|")[-1].strip() == loaded:
                process.send_signal(signal.SIGINT)
                break
        said, told = process.communicate(timeout=60)
    told = [line for line in told.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130 and said == ""
    assert told in ([], ["Interrupted. The same command continues where it stopped."])


def test_a_method_that_fits_no_such_model_leaves_the_counts_of_the_others():
    counted = count_methods(load_config(overrides=["backbone=tiny:roberta", "method.target_projections=[all-linear]"]))
    assert counted["methods"]["lora"]["adapter"] == 14_336 and counted["methods"]["tied_lora"]["adapter"] is None
    assert "layers of equal widths" in counted["methods"]["tied_lora"]["note"]
    with pytest.raises(UserError, match="Did you mean 'query'"):
        count_methods(load_config(overrides=["backbone=tiny:roberta", "method.target_projections=[quary]"]))


@pytest.mark.slow
def test_params_tasks_and_doctor(tmp_path):
    counted = json.loads(lora_drop("params", "--backbone", "tiny:roberta", "--json").stdout)
    assert counted["backbone"] == "tiny:roberta" and counted["methods"]["lora"] == {
        "adapter": 8 * 8 * (32 + 32),
        "head": 32 * 32 + 32 + 2 * 32 + 2,
    }
    rows = json.loads(lora_drop("tasks", "--offline", "--json", "--data-dir", tmp_path).stdout)
    assert next(row for row in rows if row["task"] == "cola")["read from"] == f"nowhere (not in {tmp_path})"
    checks = {row["check"]: row for row in json.loads(lora_drop("doctor", "--offline", "--json").stdout)}
    assert (
        checks["packaged:minilm-l6"]["state"] == "checksum correct"
        and checks["Hub"]["state"] == "not contacted (offline)"
    )
    assert "cores" in checks["cpu"]["state"]
    assert checks["tokenised rows"]["state"].startswith(os.environ["LORA_DROP_CACHE"])


def test_an_address_of_the_hub_that_datasets_cannot_read_is_said_at_once(monkeypatch, capsys):
    """It would be an error while datasets is imported."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub:none")
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor"])
    assert end.value.code == 2 and "HF_ENDPOINT=http://hub:none is not a valid address" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--help"])
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [("hub.local", "unknown url type"), ("http://a b", "control characters")],
)
def test_an_address_of_the_hub_that_is_none_is_a_finding(endpoint, said, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = diagnose(None, offline=False)[-1]
    assert found["check"] == "Hub" and endpoint in found["state"] and said in found["state"]
    assert found["remedy"].startswith("correct HF_ENDPOINT")


def test_config_prints_a_file_that_can_be_saved_and_run(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(lora_drop("config", "-c", "demo", "-o", "data_dir=/mnt/my #1 data").stdout, encoding="utf-8")
    assert load_config([path]) == load_config(["demo"], ["data_dir=/mnt/my #1 data"])
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):  # every key has its help above it
        if re.match(r" *[a-z_]+:", line):
            assert lines[number - 1].lstrip().startswith("# "), line


@pytest.mark.slow
def test_every_module_imports_on_its_own():
    import lora_drop as package

    root = Path(package.__file__).parent
    names = [
        ".".join(("lora_drop", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(root.rglob("*.py"))
    ]
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [key for key in sys.modules if key.startswith("lora_drop")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
