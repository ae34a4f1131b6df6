"""The choice of the epoch in tables: best on the evaluation split, best on rows held out, last."""

import csv
import io
from dataclasses import replace

import pytest
from measured import record

from lora_drop.experiments.epochs import kept_epochs, optimism
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.spreadsheet import to_csv
from lora_drop.experiments.table import build_tables

EPOCHS = [{"epoch": 1.0, "accuracy": 0.8}, {"epoch": 2.0, "accuracy": 0.79}]


def held(seed, best, held_out, **changes):
    return record("lora", "rte", seed, best, held_out={"epoch": 1, "score": held_out}, epochs=EPOCHS, **changes)


def test_the_table_shows_the_score_of_each_choice():
    tables = build_tables([held(seed, 0.80 + seed / 100, 0.78) for seed in range(3)])
    head, body = kept_epochs(tables[0])
    assert head == ["", "RTE, best", "RTE, held-out rows", "RTE, last"]
    assert body == [["LoRA", "81.0 (3)", "78.0 (3)", "80.0 (3)"]]
    assert "### The epoch that is kept" in to_markdown(tables)
    (line,) = [line for line in csv.DictReader(io.StringIO(to_csv(tables))) if line["task"] == "rte"]
    assert float(line["held_out_epoch_mean"]) == pytest.approx(78)


def test_a_choice_that_was_not_measured_has_no_column_and_one_epoch_no_table():
    old = build_tables([record("lora", "rte", 0, 0.8, epochs=EPOCHS)])
    assert kept_epochs(old[0])[0] == ["", "RTE, best", "RTE, last"]
    assert "The epoch that is kept" not in to_markdown(build_tables([record("lora", "rte", 0, 0.8, epochs=EPOCHS[:1])]))


def test_optimism_is_the_mean_difference_over_seeds_and_needs_several():
    """Rows of one seed are no repetitions: they are averaged first."""
    runs = [held(seed, 0.80, 0.80 - seed / 100) for seed in range(3)]
    rows = [replace(run, row="lora_drop", held_out={"epoch": 1, "score": 0.79 - run.seed / 100}) for run in runs]
    told = optimism(build_tables([*runs, *rows])[0])
    assert (
        "1.5 points above the one that is best on rows held out of training (95 % −1.0 to 4.0, over seeds; RTE 1.5)"
        in told
    )
    assert "and 1.0 points above the last one (95 % 1.0 to 1.0, over seeds; RTE 1.0)" in told
    assert optimism(build_tables([held(0, 0.8, 0.7)])[0]) == ""


def test_what_was_not_learnt_says_nothing_of_optimism():
    assert optimism(build_tables([held(seed, 0.53, 0.50) for seed in range(6)])[0]) == ""


def test_optimism_is_measured_from_the_best_epoch_whichever_is_kept():
    epochs = [{"epoch": 1.0, "accuracy": 0.8}, {"epoch": 2.0, "accuracy": 0.79}]
    runs = [
        record(
            "lora",
            "rte",
            seed,
            0.78,
            best={"epoch": 1, "score": 0.80},
            last={"epoch": 2, "score": 0.78},
            held_out={"epoch": 2, "score": 0.78},
            epochs=epochs,
            select_epoch="last",
        )
        for seed in range(2)
    ]
    assert "scores 2.0 points above" in optimism(build_tables(runs)[0])
