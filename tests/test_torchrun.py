"""One run in several processes over gloo, and what it gives beside one process.

Launchers (torchrun, accelerate) are tried where they matter: kills, failures. Elsewhere the processes are forked, which takes a fifth of the seconds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from launches import Launches
from safetensors.torch import load_file

from lora_drop.cli import app as cli
from lora_drop.files import read_json
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.registry import TASKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = {"train.epochs": 2, "train.learning_rate": 2e-3, "method.threshold": 0.5, "method.dropout": 0.0}
WORDS = {"limit.train": 61, "limit.eval": 30, "train.batch_size": 16, "warmup.epochs": 3, **SMALL}
TEXTS = {"limit.train": 53, "limit.eval": 9, "train.batch_size": 8, "sample.ratio": 0.4, **SMALL}
TEXTS |= {"generation.max_new_tokens": 6, "eval.batch_size": 2, "task": "toy-nlg"}
BOUND = 120
"""Seconds that no launch here may take."""


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, str]:
    """A tiny encoder and a tiny decoder without dropout: several processes draw other masks than one."""
    made = {}
    for name, task in (("roberta", "toy-nli"), ("llama", "toy-nlg")):
        located = locate(f"tiny:{name}")
        tokenizer = load_tokenizer(located, causal=name == "llama")
        model = load_model(located, TASKS.get(task), 0, tokenizer)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
            if hasattr(model.config, key):
                setattr(model.config, key, 0.0)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    with Launches(tmp_path_factory.mktemp("launches")) as forked:
        yield forked


def command(folder, options) -> list[str]:
    given = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return ["run", "-d", str(folder), "--device", "cpu", *given]


def alone(folder, options) -> Path:
    with pytest.raises(SystemExit) as end:
        cli.main(command(folder, options))
    assert end.value.code == 0
    return folder


class Launch:
    """A command under torchrun, and all its processes."""

    def __init__(self, arguments, count: int = 2, **environment: str):
        self.text, variables = "", {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        self.process = subprocess.Popen(
            [*torchrun, "-m", "lora_drop", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )
        self.began, self.seen = time.monotonic(), set()

    def rank(self, number: int) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.seen.add(child)
            with suppress(psutil.Error):
                if child.environ().get("RANK") == str(number):
                    return child
        raise AssertionError(f"no process of rank {number}")

    def wait_for(self, path: Path) -> None:
        while not path.exists():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() - self.began < BOUND
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for the end; no process may be left."""
        self.text, _ = self.process.communicate(timeout=BOUND)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in self.seen)
        return self.process.returncode

    def codes(self) -> list[str]:
        """What torchrun says of how its processes ended."""
        return [line.split()[2] for line in self.text.splitlines() if line.strip().startswith("exitcode")]


def several(launches, folder, options, count: int = 2) -> Path:
    ended = launches(command(folder, options), count)
    text = "".join(one.text for one in ended)
    assert [one.code for one in ended] == [0] * count, text
    assert "Warning" not in text and text.count("Files: ") == 1
    return folder


def assert_same(one: Path, other: Path, adapters=("warmup", "adapter")) -> None:
    for name in adapters:
        first, second = (load_file(folder / name / "adapter_model.safetensors") for folder in (one, other))
        assert first.keys() == second.keys()
        assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-5
    stages = [read_json(folder / "run.json")["stages"] for folder in (one, other)]
    assert "processes" not in stages[0]["train"] and stages[1]["train"]["processes"] > 1
    for each in zip(*(stage["train"]["epochs"] for stage in stages), strict=True):
        assert each[0] == pytest.approx(each[1], abs=1e-5)
    assert stages[0]["train"]["computed"] == stages[1]["train"]["computed"]
    assert read_json(one / "metrics.json") == read_json(other / "metrics.json")
    assert (one / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()


def assert_same_selection(one: Path, other: Path) -> None:
    losses = [read_json(folder / "warmup" / "losses.json")["losses"] for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    first, second = (read_json(folder / "scores.json") for folder in (one, other))
    assert [first[key] for key in ("examples", "tokens")] == [second[key] for key in ("examples", "tokens")]
    for row, again in zip(first["modules"], second["modules"], strict=True):
        assert row["name"] == again["name"] and row["score"] == pytest.approx(again["score"], rel=1e-5)
    chosen = [read_json(folder / "selection.json")["projections"] for folder in (one, other)]
    assert any(layers["shared"] for layers in chosen[0].values()), "nothing is tied"
    for name, layers in chosen[0].items():
        assert {**layers, "coverage": 0} == {**chosen[1][name], "coverage": 0}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"score.bootstrap": 50, "score.compare": "[gradient]", "score.trained": "true"}, 2),
        ({"train.gradient_checkpointing": "true"}, 2),
        ({"train.device_batch_size": 2}, 3),  # rows are left over, and a process has none at times
    ],
    ids=["criteria", "checkpointing", "three"],
)
def test_a_classifier_with_tied_layers_is_that_of_one_process(launches, backbones, tmp_path, settings, count):
    options = {"backbone": backbones["roberta"], **WORDS, **settings}
    one, other = alone(tmp_path / "one", options), several(launches, tmp_path / "several", options, count)
    assert_same(one, other)
    assert_same_selection(one, other)
    if "score.bootstrap" in settings:
        norms = [read_json(folder / "norms.json")["modules"] for folder in (one, other)]
        for row, again in zip(*norms, strict=True):
            assert row["norms"] == pytest.approx(again["norms"], rel=1e-4)
        trained = [read_json(folder / "scores_trained.json")["modules"] for folder in (one, other)]
        assert [row["score"] for row in trained[0]] == pytest.approx([row["score"] for row in trained[1]], rel=1e-4)
        taus = [read_json(folder / "criteria.json")["agreement"] for folder in (one, other)]
        assert taus[0] == taus[1]


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 2), ({"train.gradient_checkpointing": "true", "train.device_batch_size": 1}, 3)],
    ids=["two", "three"],
)
def test_a_language_model_with_tied_layers_is_that_of_one_process(launches, backbones, tmp_path, settings, count):
    options = {"backbone": backbones["llama"], **TEXTS, **settings}
    one, other = alone(tmp_path / "one", options), several(launches, tmp_path / "several", options, count)
    assert_same(one, other)
    assert_same_selection(one, other)


@pytest.mark.parametrize("settings", [{"name": "lora"}, {"name": "adalora"}], ids=lambda settings: settings["name"])
def test_other_methods_are_those_of_one_process(launches, backbones, tmp_path, settings):
    options = {"backbone": backbones["roberta"], **WORDS, **{f"method.{key}": value for key, value in settings.items()}}
    # a loss that is a sum, with a penalty, in 7 passes of 8 at the end of an epoch, and in 4 of 4
    options |= {"train.label_smoothing": 0.1, "train.device_batch_size": 2}
    one, other = alone(tmp_path / "one", options), several(launches, tmp_path / "several", options)
    assert_same(one, other, adapters=("adapter",))


LONG = {**WORDS, "backbone": "tiny:roberta", "method.dropout": 0.1, "train.save_steps": 1, "train.epochs": 6}


def test_a_run_goes_on_after_the_kill_of_one_process_and_after_sigterm(launches, tmp_path):
    """With dropout, whose masks follow from the random numbers of each process in the checkpoint."""
    whole = several(launches, tmp_path / "whole", LONG)
    folder = tmp_path / "run"
    launch = Launch(command(folder, LONG))
    launch.wait_for(folder / "checkpoints" / "train" / "checkpoint-3")
    launch.rank(1).kill()
    assert launch.end() == 1
    assert launch.text.count("Another process of this run has ended. The same command continues.") == 1
    assert read_json(folder / "run.json")["status"] == "failed"

    launch = Launch(command(folder, LONG))
    launch.wait_for(folder / "checkpoints" / "train" / "checkpoint-9")
    launch.process.send_signal(signal.SIGTERM)
    assert launch.end() == 1
    assert launch.text.count("Interrupted. The same command continues where it stopped.") == 1
    assert set(launch.codes()) <= {"143"}
    assert read_json(folder / "run.json")["status"] == "interrupted"
    step = max(int(path.name.split("-")[1]) for path in (folder / "checkpoints" / "train").glob("checkpoint-*"))
    assert 9 <= step < 24

    several(launches, folder, LONG)
    manifest = read_json(folder / "run.json")
    assert manifest["status"] == "done" and manifest["stages"]["train"]["resumed"]
    for name in ("adapter/adapter_model.safetensors", "metrics.json", "predictions.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


BROKEN = """
import os

from lora_drop.errors import UserError
from lora_drop.pruning.criteria.base import Criterion
from lora_drop.pruning.criteria.output import measure


def broken(given):
    if os.environ["RANK"] == "1":
        raise {error}("only here")
    return measure(given)


MINE = Criterion("mine", "mine", broken, additive=True)
"""


@pytest.mark.parametrize(("error", "code"), [("UserError", "2"), ("KeyError", "1")])
def test_a_failure_of_one_process_ends_all_with_one_message(tmp_path, error, code):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(BROKEN.format(error=error))
    options = {**WORDS, "backbone": "tiny:roberta", "score.criterion": "mine"}
    launch = Launch(["--plugin", str(plugin), *command(tmp_path / "run", options)])
    assert launch.end() == 1  # torchrun's own code
    told = [line for line in launch.text.splitlines() if "only here" in line and "raise" not in line]
    assert len(told) == 1 and "Another process" not in launch.text
    assert ("Error: only here" in told[0]) == (error == "UserError")
    assert code in launch.codes()
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["run", "-o", "train.nope=1"], {}, "train.nope: no such key"),
        (["run", "--nope"], {}, "No such option: --nope"),
        (["run", "-o", "train.batch_size=1"], {}, "A batch of 1 rows leaves 1 of 2 processes without one"),
        (["run"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP splits a model over devices"),
        (["reproduce", "table1", "--dry-run"], {}, "start any other command once"),
    ],
    ids=["key", "option", "batch", "fsdp", "command"],
)
def test_a_mistake_is_told_once_and_nothing_is_written(launches, tmp_path, arguments, environment, message):
    place = ["-d", str(tmp_path / "x"), "--device", "cpu"] if arguments[0] == "run" else []
    ended = launches([*arguments, *place], **environment)
    assert [one.code for one in ended] == [2, 2]
    assert "".join(one.text for one in ended).count(message) == 1
    assert not (tmp_path / "x").exists()


def test_a_directory_that_another_command_works_in_is_told_once(launches, tmp_path):
    """The first process alone asks for the lock, while the others wait for it."""
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        ended = launches(command(folder, {**WORDS, "backbone": "tiny:roberta"}))
    text = "".join(one.text for one in ended)
    assert [one.code for one in ended] == [2, 2]
    assert text.count("Another process is working in") == 1 and "has ended" not in text


def test_accelerate_launch_with_our_configuration(backbones, tmp_path):
    folder = tmp_path / "run"
    options = {"backbone": backbones["roberta"], **WORDS, "method.name": "lora"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml"]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, "-m", "lora_drop", *command(folder, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_json(folder / "run.json")["stages"]["train"]["processes"] == 2
    assert json.loads((folder / "metrics.json").read_text())["examples"] == 30
