"""The five stages end to end, on generated data and a tiny model."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import lora_drop
from lora_drop.cli.app import main
from lora_drop.cli.perform import perform_stages
from lora_drop.config.loading import load_config
from lora_drop.errors import UserError
from lora_drop.files import digest, file_digest, read_json
from lora_drop.progress import Reporter, text_of
from lora_drop.pruning.sharing import ties
from lora_drop.registry import METHODS, TASKS
from lora_drop.runs.facts import read_facts
from lora_drop.runs.job import Job
from lora_drop.runs.listing import state
from lora_drop.runs.stages.base import training
from lora_drop.runs.store import Run
from lora_drop.runs.words import compared, doubted

pytestmark = pytest.mark.slow

SMALL = [
    "backbone=tiny:bert",
    "limit.train=120",
    "limit.eval=60",
    "train.epochs=3",
    "train.learning_rate=0.01",
    "method.threshold=0.5",
    "train.batch_size=8",
    "device=cpu",
]
WHOLE = ["sample", "score", "select", "picture", "train", "eval"]
ARTEFACTS = [
    "sample.json",
    "scores.json",
    "selection.json",
    "metrics.json",
    "predictions.jsonl",
    "warmup/adapter_model.safetensors",
    "adapter/adapter_model.safetensors",
    "adapter/lora_drop.json",
]


class Told(Reporter):
    """Remembers which stages were done."""

    def __init__(self):
        self.done, self.skipped, self.notices = [], [], []

    def finish(self, stage, seconds, note):
        self.done.append(stage)

    def skip(self, stage, reason):
        self.skipped.append(stage)

    def notice(self, text):
        self.notices.append(text)


def run(folder, *overrides, force=False, stages=("all",), compare=()):
    told = Told()
    summary = perform_stages(folder, load_config([], [*SMALL, *overrides]), list(stages), force, told, list(compare))
    return told, summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    run(folder)
    return folder


def _trained(folder: Path) -> dict:
    """What `run.json` says of the training."""
    return read_json(folder / "run.json")["stages"]["train"]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ARTEFACTS}


def test_all_artefacts_are_there_and_say_what_the_contract_says(finished):
    sample, scores, selection, metrics, manifest = (
        read_json(finished / f"{name}.json") for name in ("sample", "scores", "selection", "metrics", "run")
    )
    assert (sample["population"], sample["size"], len(sample["indices"])) == (120, 12, 12)
    assert sample["strata"] == {
        "entailment": {"population": 60, "sample": 6},
        "not_entailment": {"population": 60, "sample": 6},
    }
    assert (scores["examples"], scores["rank"], len(scores["modules"])) == (12, 8, 8)
    assert {"name", "projection", "layer", "score", "importance"} <= scores["modules"][0].keys()
    assert selection["projections"].keys() == {"query", "value"} and selection["threshold"] == 0.5
    assert (metrics["task"], metrics["split"], metrics["examples"], metrics["primary"]) == (
        "toy-nli",
        "validation",
        60,
        "accuracy",
    )
    lines = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert sum(line["prediction"] == line["reference"] for line in lines) / 60 == pytest.approx(
        metrics["metrics"]["accuracy"]
    )
    assert (manifest["status"], manifest["seed"], manifest["task"]) == ("done", 0, "toy-nli")
    assert metrics["baseline"] == {"accuracy": 0.5}
    stages = manifest["stages"]
    assert stages["train"]["trainable_parameters"]["adapter"] == selection["trainable_parameters"]
    assert [entry["epoch"] for entry in stages["train"]["epochs"]] == [1, 2, 3]
    for name, stage in stages.items():
        assert {"seconds", "peak_memory_mb", "commit", "versions"} <= stage.keys()
        assert ({"device", "threads", "weights"} <= stage.keys()) == (name not in ("select", "picture"))
    limits = {"sample": {"train": 120}, "score": {"train": 120}, "select": {}, "picture": {}}
    limits["train"] = {"train": 120, "eval": 60}
    assert {name: stage["limited"] for name, stage in stages.items()} == {**limits, "eval": {"eval": 60}}
    for name in ("score", "train"):  # so the tests below of equal bits, also after a kill, are about the fast path
        assert (
            stages[name]["computed"]
            == "packed, last layer only for the first token of each row; fp32 products by torch's default"
        )
    assert [stages[name]["precision"] for name in ("score", "train", "eval")] == ["fp32"] * 3
    assert (finished / "importance.png").read_bytes()[:4] == b"\x89PNG"
    assert not any((finished / "checkpoints").iterdir())


def test_the_same_configuration_gives_the_same_bits(finished, tmp_path):
    run(tmp_path / "two")
    assert contents(tmp_path / "two") == contents(finished)


def test_the_stages_one_by_one_are_the_run(finished, tmp_path):
    for stage in ("sample", "score", "select", "train", "eval"):
        assert run(tmp_path / "steps", stages=[stage])[0].done == [stage]
    assert contents(tmp_path / "steps") == contents(finished)


def test_nothing_is_repeated_unless_its_inputs_changed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    assert run(folder)[0].skipped == WHOLE
    assert run(folder, "method.threshold=0.7")[0].done == ["select", "picture", "train", "eval"]
    assert run(folder, "method.threshold=0.7", "eval.batch_size=7")[0].done == []
    assert run(folder, force=True)[0].done == WHOLE


def test_a_stage_alone_refuses_what_was_made_under_another_configuration(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for stage, override in [
        ("eval", "seed=5"),
        ("eval", "train.epochs=4"),
        ("eval", "limit.train=60"),
        ("train", "method.threshold=0.2"),
        ("train", "sample.ratio=0.2"),
        ("select", "warmup.epochs=1"),
    ]:
        with pytest.raises(UserError, match="made with another configuration"):
            run(folder, override, stages=[stage])
    with pytest.raises(UserError, match="has no stage score"):
        run(folder, "method.name=lora", stages=["score"])
    with pytest.raises(UserError, match=r"has no split .test"):
        run(folder, "eval.split=test")
    with pytest.raises(UserError, match="holds a model trained on toy-nli, and this command, which is about toy-nlg"):
        run(folder, "task=toy-nlg", "backbone=tiny:llama")
    with pytest.raises(UserError, match="start_from is for lora"):  # the run is fine, and one beside it is not
        run(folder, f"train.start_from={finished / 'warmup'}", compare=["full"])
    assert contents(folder) == contents(finished)
    for name in ("config.yaml", "run.json"):  # the next command works with what the last one that worked was told
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_evaluating_on_other_rows_leaves_the_run_as_it_was(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = (folder / "config.yaml").read_bytes()
    told, summary = run(folder, "limit.eval=20", stages=["eval"])
    assert told.done == ["eval"] and summary.results[0]["n"] == 20
    assert (folder / "config.yaml").read_bytes() == before
    assert run(folder)[0].done == ["eval"]
    assert contents(folder) == contents(finished)


def test_the_split_to_evaluate_is_the_one_that_is_named(finished, capsys):
    with pytest.raises(SystemExit) as end:
        main(["eval", "-d", str(finished), "--split", "test"])
    assert end.value.code == 2 and "toy-nli has no split 'test'" in capsys.readouterr().err


def test_what_is_kept_beside_the_scores_agrees_with_them(finished, tmp_path):
    """Norms, bootstrap and the scores of the trained adapter; the other stages are not repeated for them."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    told, summary = run(folder, "score.bootstrap=50", "score.trained=true")
    assert told.done == ["norms", "stability", "picture", "trained"]  # the picture shows the intervals
    scores, norms, stability, trained = (
        read_json(folder / f"{name}.json") for name in ("scores", "norms", "stability", "scores_trained")
    )
    for row, kept in zip(scores["modules"], norms["modules"], strict=True):
        assert row["name"] == kept["name"] and len(kept["norms"]) == scores["examples"]
        assert sum(kept["norms"]) / scores["examples"] == pytest.approx(row["score"], rel=1e-5)
    assert [row["importance"] for row in stability["modules"]] == [row["importance"] for row in scores["modules"]]
    assert all(row["low"] <= row["high"] and 0 <= row["retained"] <= 1 for row in stability["modules"])
    assert summary.stability == stability["modules"] and stability["resamples"] == 50
    assert [row["name"] for row in trained["modules"]] == [row["name"] for row in scores["modules"]]
    assert [row["score"] for row in trained["modules"]] != [row["score"] for row in scores["modules"]]
    assert contents(folder) == contents(finished)
    assert run(folder, "score.bootstrap=60", stages=["score"])[0].done == ["stability"]


def test_a_model_is_not_described_by_what_was_configured_after_its_training(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    trained = read_facts(folder)
    assert trained.trained_as_configured and len(compared([trained])) == 1
    run(folder, "seed=7", "train.epochs=50", stages=["sample"])
    facts = read_facts(folder)
    assert facts.seed == 0 and state(facts) == "done, then reconfigured" and compared([facts]) == []
    assert any("configuration was changed" in doubt for doubt in doubted(facts))
    run(folder, stages=["sample"])  # as it was
    assert state(read_facts(folder)) == "done"
    run(folder, "eval.batch_size=3", "train.save_steps=5", stages=["sample"])
    assert state(read_facts(folder)) == "done"


def test_intervals_of_other_scores_are_not_shown(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run(folder, "score.bootstrap=20", stages=["score"])
    assert read_facts(folder).stability["resamples"] == 20
    run(folder, "score.criterion=weight", stages=["score"])
    assert (folder / "stability.json").exists() and read_facts(folder).stability == {}


def test_norms_stand_in_the_order_of_the_sample(finished):
    """The longest inputs are scored first; what is kept is in the order of sample.json all the same."""
    import lora_drop.pruning.importance as profiler
    from lora_drop.data.sentences import batches
    from lora_drop.runs import models
    from lora_drop.runs.job import Job
    from lora_drop.runs.pipeline import perform as perform_stage
    from lora_drop.runs.stages import BY_NAME
    from lora_drop.runs.store import Run

    job = Job(Run(finished))
    perform_stage(job, BY_NAME["norms"])
    first = job.data.train.encoded.select(read_json(finished / "sample.json")["indices"][:1])
    model = METHODS.get("lora").load(models.load_backbone(job), finished / "warmup")
    alone = profiler.score(model, (batch for _, batch in batches(first, job.data.collate, 1)))
    norms = read_json(finished / "norms.json")["modules"]
    assert [row["norms"][0] for row in norms] == pytest.approx([row.score for row in alone.rows], rel=1e-4)


def test_a_new_version_of_the_task_repeats_every_stage(finished, tmp_path, monkeypatch):
    import dataclasses

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    newer = dataclasses.replace(TASKS.get("toy-nli"), version=99)
    monkeypatch.setitem(TASKS.added, "toy-nli", newer)
    assert run(folder)[0].done == [
        "sample",
        "score",
        "train",
        "eval",
    ]  # the scores come out equal, so the selection stands


def test_an_abandoned_retraining_does_not_change_what_is_said_of_the_old_adapter(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)

    class Kill(Told):
        def advance(self, done, total, note=""):
            if "epoch 2" in text_of(note) and "train" not in self.done and "select" in (*self.done, *self.skipped):
                raise SystemExit

    with pytest.raises(SystemExit):
        perform_stages(folder, load_config([], [*SMALL, "method.rank=16"]), ["all"], False, Kill(), [])
    _, summary = run(folder)
    assert summary.results[0]["parameters"] == _trained(finished)["trainable_parameters"]["adapter"]
    assert contents(folder) == contents(finished)


def test_threshold_one_trains_exactly_plain_lora(tmp_path):
    run(tmp_path / "run", "method.threshold=1", compare=["lora"])
    whole, plain = tmp_path / "run", tmp_path / "run" / "compare" / "lora"
    name = "adapter/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (plain / name).read_bytes()
    losses = [[entry["loss"] for entry in _trained(folder)["epochs"]] for folder in (whole, plain)]
    assert losses[0] == losses[1]
    counts = [_trained(folder)["trainable_parameters"] for folder in (whole, plain)]
    assert counts[0] == counts[1]
    assert (whole / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()


@pytest.mark.parametrize("name", ["full", "sparse_adapter", "vera", "tied_lora", "adalora"])
def test_a_baseline_skips_the_stages_that_it_does_not_need(name, tmp_path):
    told, summary = run(tmp_path / name, f"method.name={name}", "train.epochs=1")
    assert told.done == ["train", "eval"] and summary.results[0]["method"] == METHODS.get(name).title
    run(tmp_path / "again", f"method.name={name}", "train.epochs=1")
    assert file_digest(tmp_path / name / "adapter") == file_digest(tmp_path / "again" / "adapter")


def test_the_trained_model_is_loaded_tied(finished):
    model, tokenizer = lora_drop.load_run(finished, device="cpu")
    assert ties(model)
    with torch.no_grad():
        assert model(**tokenizer("some dogs move.", "no dogs move.", return_tensors="pt")).logits.shape == (1, 2)


def test_the_python_interface(finished):
    from peft import PeftModel

    from lora_drop.models.backbones import load_model, load_tokenizer, locate
    from lora_drop.registry import TASKS

    located = locate("tiny:bert")
    tokenizer = load_tokenizer(located)
    warm = PeftModel.from_pretrained(load_model(located, TASKS.get("toy-nli"), 0, tokenizer), str(finished / "warmup"))
    scores = lora_drop.score(warm, [dict(tokenizer(["some dogs move."], return_tensors="pt"))])
    selection = lora_drop.select(scores.rows, threshold=0.5)
    assert len(ties(lora_drop.share(warm, selection))) == sum(
        len(layers.shared) > 1 for layers in selection.projections.values()
    )


def test_a_stage_without_the_one_before_it_says_which(tmp_path):
    with pytest.raises(UserError, match="lora-drop sample --run-dir"):  # nothing was sampled
        run(tmp_path / "x", stages=["score"])


def test_regression_and_strata_run_through(tmp_path):
    folder = tmp_path / "data" / "glue" / "STS-B"
    folder.mkdir(parents=True)
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    rows = "".join(f"{n}\tg\tf\ty\t0\ts\ts\tsentence {n}\tsentence {n % 3}\t{n % 6}\n" for n in range(40))
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(header + rows)
    told, summary = run(
        tmp_path / "run",
        "task=stsb",
        f"data_dir={tmp_path / 'data'}",
        "limit.train=30",
        "limit.eval=20",
        "train.epochs=1",
    )
    assert told.done[-1] == "eval" and {"spearman", "pearson"} <= summary.results[0].keys()


def test_longer_than_the_backbone_is_refused(tmp_path):
    with pytest.raises(UserError, match="more than this backbone's 512 positions"):
        run(tmp_path / "run", "train.max_length=513", "method.name=lora")


def test_cut_inputs_are_counted(tmp_path):
    told, _ = run(tmp_path / "run", "train.max_length=40", stages=["sample"])
    assert told.notices == ["limited to 120 of 1,600 train rows"]
    told, _ = run(tmp_path / "run", "train.max_length=40", "warmup.epochs=1", stages=["score"])
    (cut,) = (text for text in told.notices if "were cut" in text)
    stages = read_json(tmp_path / "run" / "run.json")["stages"]
    assert stages["score"]["cut"] == {"train": [cut]} and stages["sample"]["cut"] == {}


def test_where_a_command_ran_is_not_what_the_next_one_is_told(tmp_path):
    run(tmp_path / "run", "offline=true", stages=["sample"])
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["offline"], stored["device"]) == (False, "auto")
    assert read_json(tmp_path / "run" / "run.json")["stages"]["sample"]["device"] == "cpu"


def test_a_killed_run_continues_and_gives_the_same_bits(finished, tmp_path):
    """SIGKILL in the middle of final training, after its first checkpoint; the second start resumes from it."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "lora_drop.cli.app", "run", "-d", str(folder), "-q"] + [
        part for item in SMALL for part in ("-o", item)
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list((folder / "checkpoints" / "train").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists() and read_json(folder / "run.json")["status"] == "running"
    told, _ = run(folder)
    assert told.skipped == ["sample", "score", "select", "picture"] and told.done == ["train", "eval"]
    assert contents(folder) == contents(finished)


def test_new_keys_leave_what_was_trained_by_earlier_versions_as_it_is(tmp_path):
    """The digest of a default training: with another one, every run directory there is would be trained anew."""
    job = Job(Run(tmp_path, load_config([], ["backbone=tiny:bert"])))
    assert digest(training(job, job.config.train)) == "8ec0acaaa173207c"
