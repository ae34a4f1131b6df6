"""Training rows that are held out: never trained on, scored after each epoch, and chosen by if so configured."""

import pytest

from lora_drop.cli.perform import perform_stages
from lora_drop.config.identity import config_hash
from lora_drop.config.loading import from_dict, load_config
from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.progress import SILENT
from lora_drop.runs.job import Job
from lora_drop.runs.store import Run

SMALL = [
    *("backbone=tiny:bert", "limit.train=80", "limit.eval=40", "train.epochs=3", "train.learning_rate=0.01"),
    *("train.batch_size=8", "device=cpu", "method.name=lora", "train.held_out=0.25"),
]


def test_rows_held_out_are_a_stratified_part_of_which_nothing_is_trained_on(tmp_path):
    def data(*settings):
        return Job(Run(tmp_path, load_config([], [*SMALL, *settings])), SILENT).data

    held, whole = data(), data("train.held_out=0")
    rest, aside, all_rows = (
        [str(row) for row in rows] for rows in (held.train.rows, held.held_out.rows, whole.train.rows)
    )
    assert len(rest) == 60 and len(aside) == 20 and sorted(rest + aside) == sorted(all_rows)
    assert len(whole.held_out.rows) == 0 and whole.train.digest != held.train.digest
    strata = held.task.strata(held.held_out.rows)
    share = {name: whole.task.strata(whole.train.rows).count(name) / 4 for name in set(strata)}
    assert all(abs(strata.count(name) - expected) < 1 for name, expected in share.items())
    assert held.used(("train",))["limited"] == {"train": 80}  # as limited, not as held out
    assert data("seed=1").held_out.digest != held.held_out.digest


@pytest.mark.slow
def test_the_epoch_that_is_kept_is_the_best_on_the_rows_held_out(tmp_path):
    rows = [f"{'word ' * (1 + number % 9)},{number * 7 % 10 + 0.5}" for number in range(80)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["text,label", *rows]))
    own = [*SMALL, f"data.path={table}", "data.validation=0.25", "train.select_epoch=held_out", "train.epochs=5"]
    perform_stages(tmp_path / "run", load_config([], own), ["all"], False, SILENT, [])
    trained, metrics = (read_json(tmp_path / "run" / name) for name in ("run.json", "metrics.json"))
    trained, primary = trained["stages"]["train"], metrics["primary"]
    best = max(trained["epochs"], key=lambda entry: entry["held_out"])
    assert len({entry["held_out"] for entry in trained["epochs"]}) > 1, "epochs that all score alike choose nothing"
    assert trained["kept_epoch"] == best["epoch"] and trained["held_out_rows"] == 15 and trained["train_rows"] == 45
    assert metrics["metrics"][primary] == best[primary] != best["held_out"]  # of the evaluation rows


def test_choosing_by_rows_that_are_not_held_out_is_refused():
    with pytest.raises(UserError, match=r"train\.select_epoch = held_out .* set train\.held_out, for example to 0\.1"):
        from_dict({"train": {"select_epoch": "held_out"}})


@pytest.mark.parametrize("settings", [["train.held_out=0.99", "limit.train=40"], ["limit.train=1"]])
def test_rows_of_which_none_is_left_to_train_on_are_refused_before_work_starts(settings, tmp_path):
    with pytest.raises(UserError, match=r"train\.held_out=0\.\d+ of \d+ training rows leaves none to train on"):
        perform_stages(tmp_path / "run", load_config([], [*SMALL, *settings]), ["all"], False, SILENT, [])
    assert not (tmp_path / "run").exists()


def test_configurations_without_the_key_keep_their_identity():
    assert config_hash(from_dict({})) == config_hash(from_dict({"train": {"held_out": 0.0}}))
    assert config_hash(from_dict({})) != config_hash(from_dict({"train": {"held_out": 0.1}}))
