"""Grids of real runs on a tiny model: done runs are skipped, killed ones continued, failed ones told, warm-ups shared."""

import dataclasses
import gc
import json
import shutil
import signal
import subprocess
import time
import weakref

import pytest
import torch
from grids import TEXTS, command, perform, planned

from lora_drop.cli import app as cli
from lora_drop.errors import UserError
from lora_drop.experiments import estimate as estimation
from lora_drop.experiments.engine import perform_grid
from lora_drop.experiments.engines.local import InProcess
from lora_drop.experiments.estimate import ends_after, estimate
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.experiments.one_run import run_directory
from lora_drop.experiments.records import read_records
from lora_drop.experiments.report import report
from lora_drop.experiments.results import Results
from lora_drop.files import read_json
from lora_drop.progress import SILENT, GridReporter, Reporter
from lora_drop.runs import models
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import adopt, turn_digest
from lora_drop.runs.stages import BY_NAME
from lora_drop.runs.store import Run
from lora_drop.training.way import why_slow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Table 6 on toy data, one seed."""
    folder = tmp_path_factory.mktemp("table6")
    outcome = perform(folder, planned("table6"))
    assert not outcome.failed and len(outcome.performed) == 5
    return folder


def test_a_threshold_sweep_warms_up_once(swept):
    records = read_records(swept / "results" / "table6" / "tiny-roberta")
    own = [record.row for record in records if "shared_from" not in record.stages["score"]]
    assert own == ["t1.00"]  # the first that was performed
    assert all(record.scores == records[0].scores for record in records)
    assert {record.stages["score"]["seconds"] for record in records} == {records[0].stages["score"]["seconds"]}
    kept = {record.row: record.parameters["adapter"] for record in records}
    assert kept["t1.00"] == 4096 >= kept["t0.95"] >= kept["t0.90"] >= kept["t0.80"] >= kept["t0.70"]


def test_a_warm_up_taken_over_leaves_nothing_of_its_own_try_that_was_killed(tmp_path):
    """Killed in its warm-up, a run finds at its return that another one has made the same meanwhile."""
    runs = planned("table6")[:2]
    perform(tmp_path, runs)
    run = run_directory(runs[1], tmp_path / "runs")
    (run / "scores.json").unlink()
    (run / "checkpoints" / "score").mkdir(parents=True)
    (run / "checkpoints" / "score" / "inputs").write_text("of its own try")
    for record in (tmp_path / "results").rglob("*-s0-*.json"):
        record.unlink()
    outcome = perform(tmp_path, runs)
    assert len(outcome.performed) == 2 and read_json(run / "run.json")["stages"]["score"]["shared_from"]
    assert not (run / "checkpoints" / "score").exists()


def test_a_record_holds_what_its_run_gave(swept):
    (record,) = [
        record for record in read_records(swept / "results" / "table6" / "tiny-roberta") if record.row == "t0.90"
    ]
    (run,) = [run for run in planned("table6") if run.row == "t0.90"]
    folder = run_directory(run, swept / "runs")
    assert record.metrics == read_json(folder / "metrics.json")["metrics"]
    assert record.selection == read_json(folder / "selection.json")
    assert (record.experiment, record.task, record.seed, record.examples) == ("table6", "toy-nli", 0, 40)
    assert record.limited == {"train": 80, "eval": 40} and record.primary == "accuracy" and record.percent
    assert record.best["score"] == record.last["score"] == record.metrics["accuracy"]
    assert {"sample", "score", "select", "picture", "train", "eval"} == record.stages.keys()
    assert all(stage["peak_memory_mb"] > 0 for stage in record.stages.values())
    computed = [record.stages[name] for name in ("sample", "score", "train", "eval")]
    assert all(stage["device"] == "cpu" and stage["threads"] >= 1 for stage in computed)
    assert all(stage["versions"].keys() >= {"torch", "python"} for stage in record.stages.values())
    read = {name: (stage.get("data", {}).keys(), stage["limited"]) for name, stage in record.stages.items()}
    train, both = {"train": 80}, {"train": 80, "eval": 40}
    assert read == {"sample": (train.keys(), train), "score": (train.keys(), train), "select": ({}.keys(), {})} | {
        "picture": ({}.keys(), {}),
        "train": (both.keys(), both),
        "eval": ({"eval"}, {"eval": 40}),
    }
    assert not {"data_dir", "device", "offline"} & record.config.keys()
    assert record.deviations["train.epochs"] == [2, 1] and record.overrides["backbone"] == "tiny:roberta"


def test_what_is_done_is_not_repeated_also_for_another_experiment(swept, tmp_path):
    outcome = perform(swept, planned("table6"))
    assert outcome.already == 5 and not outcome.performed
    figure9 = planned("figure9")
    seen = []

    class Stages(GridReporter):
        def finish(self, stage, seconds, note):
            seen.append(stage)

    outcome = perform_grid(figure9, Results(tmp_path), Stages(), InProcess(swept / "runs"))
    assert len(outcome.performed) == 1 and not seen  # LoRA-drop at T = 0.9 is a run of both
    (record,) = read_records(tmp_path / "figure9" / "tiny-roberta")
    assert record.scores and not record.metrics and record.stages.keys() == {"sample", "score", "select"}


def test_a_run_asked_for_in_another_way_stands_in_both_tables(swept, tmp_path):
    """Two epochs are what toy data has anyway, one changes T = 0.9 and 0.7 alike: the run is done, and belongs to both sets."""
    folder = tmp_path / "results"
    shutil.copytree(swept / "results", folder)
    first = planned("table6", rows=["t0.90"])
    again = planned("table6", "train.weight_decay=0.1", rows=["t0.90"])
    assert again[0].config == first[0].config and again[0].overrides == first[0].overrides  # 0.1 is what it was
    (other,) = planned("table6", rows=["t0.90"], files=[])
    other = dataclasses.replace(other, overrides={**other.overrides, "train.weight_decay": 0.2})
    assert perform_grid([other], Results(folder), GridReporter(), InProcess(swept / "runs")).already == 1
    one, two = report(folder, figures=False)[folder / "table6" / "tiny-roberta"]
    assert len(one.records) == 5 and [row.name for row in two.rows if row.cells] == ["t0.90"]


def test_a_result_of_an_older_version_is_made_anew_in_its_place(swept, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(swept / "results", folder)
    (path,) = folder.glob("table6/*/t0.90-*.json")
    content = json.loads(path.read_text())
    content["made_by"]["stage score"] -= 1
    path.with_name(path.name.replace("-s0-", "-s0-0123456789ab-")).write_text(json.dumps(content))  # of other defaults
    path.unlink()
    (run,), told = planned("table6", rows=["t0.90"]), []

    class Told(GridReporter):
        def notice(self, text):
            told.append(text)

    engine = InProcess(swept / "runs")
    assert perform_grid([run], Results(folder, keep_old=True), Told(), engine).already == 1
    assert perform_grid([run], Results(folder), Told(), engine).performed == [run.name]
    assert [text.rpartition(": ")[2] for text in told if "older" in text] == [
        "they are kept",
        "these runs are performed again, unless --keep-old is given",
    ]
    (kept,) = folder.glob("table6/*/t0.90-*.json")
    assert json.loads(kept.read_text())["made_by"]["stage score"] == content["made_by"]["stage score"] + 1


def test_no_model_outlives_its_run(tmp_path, monkeypatch):
    """Not even until the garbage collector comes: a grid of large models must not wait for it."""
    alive, real = [], models.load_model

    def load(*arguments):
        model = real(*arguments)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_model", load)
    gc.collect()
    gc.disable()
    try:
        outcome = perform(tmp_path, planned("table1", rows=["full", "lora_drop"]))
    finally:
        gc.enable()
    assert len(outcome.performed) == 2 and len(alive) == 5
    assert [model() for model in alive] == [None] * 5


def test_decoding_settings_are_compared_on_one_training(tmp_path):
    settings = ["limit.train=40", "limit.eval=4", "train.epochs=1", "train.select_epoch=last", "device=cpu"]
    path = tmp_path / "decoding.yaml"
    rows = {"short": {"generation.max_new_tokens": 3}, "long": {"generation.max_new_tokens": 8}}
    path.write_text(json.dumps({"backbone": "tiny:llama", "tasks": ["toy-nlg"], "seeds": [0], "rows": rows}))
    runs = expand(load_experiment(str(path)), Choice(overrides=settings))
    assert len(perform(tmp_path, runs).performed) == 2
    short, long = (
        next(record for record in read_records(tmp_path / "results" / "decoding" / "tiny-llama") if record.row == row)
        for row in ("short", "long")
    )
    assert "shared_from" in long.stages["train"] and "shared_from" not in long.stages["eval"]
    assert short.parameters == long.parameters and short.stages["eval"]["data"] == long.stages["eval"]["data"]
    assert long.stages["train"] == {"shared_from": long.stages["train"]["shared_from"], **short.stages["train"]}
    files = [run_directory(run, tmp_path / "runs") / "predictions.jsonl" for run in runs]
    texts = [[json.loads(line)["prediction"] for line in path.read_text().splitlines()] for path in files]
    assert all(second.startswith(first) for first, second in zip(*texts, strict=True)) and texts[0] != texts[1]
    one, other = (Run(run_directory(run, tmp_path / "runs"), run.config) for run in runs)
    other.enter("train", {**other.entry("train"), "inputs": "of another adapter"})
    job = Job(other, SILENT, others=lambda: [one])
    assert adopt(job, BY_NAME["train"]) and not job.run.entry("eval") and not job.run.file("metrics.json").exists()


def test_a_limit_above_the_rows_there_are_is_none(tmp_path):
    (run,) = planned("table1", "limit.eval=100000", rows=["lora"])
    perform(tmp_path, [run])
    (record,) = read_records(tmp_path / "results" / "table1" / "tiny-roberta")
    assert record.limited == {"train": 80} and record.examples == 400


def test_a_key_that_is_new_does_not_make_old_results_undone(swept):
    """A record of a time when a key did not exist equals today's configuration if the key has its default."""
    path = next((swept / "results" / "table6" / "tiny-roberta").glob("t0.70-*.json"))
    before = path.read_text()
    content = json.loads(before)
    del content["config"]["generation"]
    path.write_text(json.dumps(content))
    assert perform(swept, planned("table6")).already == 5
    content["config"]["train"]["batch_size"] = 16
    path.write_text(json.dumps(content))
    assert perform(swept, planned("table6")).already == 4
    path.write_text(before)


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    """Neither those of other methods, nor those that look at it for a warm-up."""
    runs = planned("table6", rows=["t1.00", "t0.90", "t0.70"])
    broken = run_directory(next(run for run in runs if run.row == "t0.90"), tmp_path / "runs")
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{ damaged")
    outcome = perform(tmp_path, runs)
    assert len(outcome.performed) == 2 and len(outcome.failed) == 1
    ((name, message),) = outcome.failed.items()
    assert name.startswith("t0.90-") and "not valid JSON" in message
    (broken / "run.json").unlink()
    assert len(perform(tmp_path, runs).performed) == 1


def test_two_results_for_one_cell_are_refused(swept, tmp_path):
    folder = tmp_path / "table6" / "tiny-roberta"
    folder.mkdir(parents=True)
    path = next((swept / "results" / "table6" / "tiny-roberta").glob("t0.70-*.json"))
    for name in ("one", "two"):
        (folder / f"{name}.json").write_text(path.read_text())
    with pytest.raises(UserError, match=r"two results for t0.70, toy-nli, seed 0"):
        report(tmp_path)


def test_a_result_of_another_configuration_is_told_before_a_run_starts(tmp_path, capsys):
    """Else the table would be refused after hours of runs."""
    path, grid = tmp_path / "own.yaml", {"backbone": "tiny:roberta", "tasks": ["toy-nli"], "rows": {"lora": {}}}
    path.write_text(json.dumps({**grid, "set": {"method.name": "lora", "train.learning_rate": 0.002}}))
    perform(tmp_path, planned(str(path)))
    path.write_text(json.dumps({**grid, "set": {"method.name": "lora", "train.learning_rate": 0.001}}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.main(command(tmp_path, str(path))[3:])
    message = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "lora, toy-nli, seed 0" in message and sorted(tmp_path.rglob("*")) == before
    assert "train.learning_rate is 0.002 there, 0.001 now. A table" in message


def test_a_killed_grid_gives_the_same_tables(swept, tmp_path):
    """SIGKILL in the middle of a run's training, and again when three runs are done; then to the end."""
    results, started = tmp_path / "results" / "table6" / "tiny-roberta", time.monotonic()
    for killable in (
        lambda: list(tmp_path.glob("runs/*/*/checkpoints/train/checkpoint-*/trainer_state.json")),
        lambda: len(list(results.glob("*.json"))) == 3,
    ):
        process = subprocess.Popen(command(tmp_path, "table6"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not killable():
            assert process.poll() is None and time.monotonic() - started < 250, (
                "the grid ended before it could be killed"
            )
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(results.glob("*.json"))) == 3
    assert subprocess.run(command(tmp_path, "table6"), capture_output=True, check=False).returncode == 0
    report(swept / "results")
    for name in TEXTS:
        assert (results / name).read_bytes() == (swept / "results" / "table6" / "tiny-roberta" / name).read_bytes()
    adapters = "runs/tiny-roberta/*/adapter/adapter_model.safetensors"
    undisturbed = {path.parts[-3]: path.read_bytes() for path in swept.glob(adapters)}
    assert {path.parts[-3]: path.read_bytes() for path in tmp_path.glob(adapters)} == undisturbed and len(
        undisturbed
    ) == 5
    assert any(stage.get("resumed") for record in read_records(results) for stage in record.stages.values())


@pytest.mark.parametrize("name", ["table1", "table7", "figure2", "figure7", "figure11"])
def test_every_kind_of_experiment_ends_with_its_files(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(command(tmp_path, name)[3:] + (["--methods", "lora,tied_lora,lora_drop"] if name == "table1" else []))
    printed = capsys.readouterr().out
    assert end.value.code == 0 and load_experiment(name).title in printed
    folder = tmp_path / "results" / name / "tiny-roberta"
    for figure in load_experiment(name).figures:
        assert (folder / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"
        assert (folder / f"{figure}.pdf").read_bytes()[:4] == b"%PDF"
    if name == "figure11":
        assert "Kendall τ between the rows, query" in (folder / "table.md").read_text()
        assert [record.warmup_steps for record in read_records(folder)] == [189] * 10


def test_a_dry_run_estimates_and_writes_nothing(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LORA_DROP_DATA", raising=False)
    arguments = command(swept, "table6")[3:]
    arguments.remove("--quiet")
    timed, real = [], estimation._time_training
    monkeypatch.setattr(
        estimation, "_time_training", lambda job, stage, *rest: timed.append(stage) or real(job, stage, *rest)
    )
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--seeds", "0,1", "--dry-run", "--json", "--runs", str(tmp_path / "nothing")])
    plan = json.loads(capsys.readouterr().out)
    assert timed.count("score") == 1  # the rows have their warm-up in common
    assert end.value.code == 0 and not (tmp_path / "nothing").exists()
    assert [run["done"] for run in plan["runs"]] == [True] * 5 + [False] * 5
    assert len(plan["estimates"]) == 5 and all(
        entry["runs"] == 1 and entry["seconds"] > 0 for entry in plan["estimates"]
    )
    alone, *_, each = plan["devices"]
    assert [entry["devices"] for entry in plan["devices"]] == [1, 2, 4, 5]
    assert alone["seconds"] == pytest.approx(sum(entry["seconds"] for entry in plan["estimates"]))
    assert each["seconds"] == each["in_order"] == max(entry["seconds"] for entry in plan["estimates"])
    for options in (["--json"], []):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--tasks", "rte", "--offline", "--dry-run", *options])
    as_json, printed = capsys.readouterr().out.split("\n", 1)
    entries = json.loads(as_json)["estimates"]
    assert len(entries) == 5 and all(entry["seconds"] is None for entry in entries)
    assert {entry["reason"] for entry in entries} == {entries[0]["reason"]} and printed.count(entries[0]["reason"]) == 1
    assert "put the official file at" in entries[0]["reason"]


def test_the_longest_runs_are_best_begun_first():
    runs = [1.0, 1.0, 1.0, 1.0, 4.0]
    assert [ends_after(runs, devices) for devices in (1, 2, 5)] == [8, 6, 4]
    assert ends_after(sorted(runs, reverse=True), 2) == 4


@pytest.mark.parametrize(
    ("name", "model", "rows"), [("table1", "roberta", 7), ("table5", "llama", 3), ("figure2", "roberta", 1)]
)
def test_every_kind_of_run_is_timed(name, model, rows, tmp_path, monkeypatch):
    """With fewer rows than a timed step computes, and a warm-up of fewer steps."""
    few = ["limit.train=12", "limit.eval=3", "warmup.epochs=0.3", "generation.max_new_tokens=4"]
    monkeypatch.chdir(tmp_path)
    found = list(estimate(planned(name, *few, backbone=f"tiny:{model}"), SILENT))
    assert [entry.reason for entry in found] == [""] * rows
    assert all(entry.seconds > 0 and entry.disk_mb > 0 and entry.peak_disk_mb > entry.disk_mb for entry in found)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_machine_lacks_is_told_before_the_hours_are_spent():
    class Told(Reporter):
        def notice(self, text):
            notices.append(text)

    notices: list[str] = []
    list(estimate(planned("figure2", "train.precision=fp16"), Told()))
    told = [text for text in notices if text.startswith("train.precision=fp16: ")]
    assert bool(told) is bool(why_slow(torch.device("cpu"), "fp16"))


def test_each_criterion_is_timed_once_for_a_warm_up(monkeypatch):
    timed, real = [], estimation._time_scoring

    def time_scoring(job, model, criterion, clock):
        timed.append(criterion)
        return real(job, model, criterion, clock)

    monkeypatch.setattr(estimation, "_time_scoring", time_scoring)
    runs = planned("criteria")
    asked = list(dict.fromkeys(run.config.score.criterion for run in runs))
    found = list(estimate(runs, SILENT))
    assert [entry.reason for entry in found] == [""] * len(runs) and timed == asked and len(asked) > 5
    timed.clear()
    list(estimate(planned("figure2", "score.compare=[weight,fisher]"), SILENT))
    assert timed == ["output", "output", "weight", "fisher"]  # the second is for the norms of examples


def test_runs_that_differ_in_the_criterion_alone_take_turns_at_their_warm_up(tmp_path):
    def turn(*overrides):
        (run,) = planned("table6", *overrides, rows=["t0.70"])
        job = Job(Run(tmp_path / "run", run.config), SILENT)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "sample.json").write_text("{}")
        return turn_digest(job, BY_NAME["score"])

    assert turn() == turn("score.criterion=fisher") != turn("warmup.steps=7")


def test_the_estimate_of_a_warm_up_grows_with_its_steps():
    def seconds(*overrides):
        (entry,) = estimate(planned("figure2", "train.batch_size=32", *overrides), SILENT)
        return entry.seconds

    seconds()  # whatever is slow the first time
    steps = [f"warmup.steps={count}" for count in (2, 200)]
    assert 5 * seconds(steps[0]) < seconds(steps[1])
    assert 5 * seconds(steps[0], "warmup.batch_size=4") < seconds(steps[0], "warmup.batch_size=320")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reproduce", "tabel1"], "Did you mean 'table1'"),
        (["reproduce", "table1", "--tasks", "colla"], "Did you mean 'cola'"),
        (["reproduce", "table1", "--methods", "lorra"], "Did you mean 'lora'"),
        (["reproduce", "table1", "--seeds", "a"], "whole numbers separated by commas"),
        (["report"], "holds no results"),
    ],
)
def test_mistakes_give_one_message_and_code_2(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and text in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())
