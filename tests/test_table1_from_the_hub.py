"""`make reproduce-glue` on a checkpoint and rows of a Hub: a small RoBERTa where the paper's would be, and every cell of Table 1 is filled."""

import csv
import dataclasses
import json

import pytest
from architectures import ALL, make_checkpoint
from hub_data import write_hub, write_official
from hub_server import HubServer, Machine
from test_hub import FAST

ROBERTA = dataclasses.replace(next(each for each in ALL if each.model_type == "roberta"), positions=514)
TASKS = ["RTE", "MRPC", "STS-B", "CoLA", "SST-2", "QNLI", "MNLI", "QQP"]


@pytest.mark.slow
def test_every_row_of_table_1_is_filled(tmp_path):
    write_official(tmp_path / "official")
    write_hub(tmp_path / "hub", tmp_path / "official")
    make_checkpoint(tmp_path / "hub" / "models" / "FacebookAI" / "roberta-base", ROBERTA)
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    limits = ("--limit-train", "64", "--limit-eval", "32", "--seeds", "0", "-o", "train.epochs=5")
    with HubServer(tmp_path / "hub") as hub, Machine(hub.env(tmp_path / "home", **FAST)) as machine:
        done = machine("reproduce", "table1", *folders, *limits, "--json", "--quiet")
    assert done.code == 0, done.err
    said = json.loads(done.out.splitlines()[-1])
    assert (said["performed"], said["failed"]) == (7 * len(TASKS), {})
    (table,) = (tmp_path / "results" / "table1").rglob("table.csv")
    with table.open(encoding="utf-8", newline="") as file:
        measured = list(csv.DictReader(file))
    assert len(measured) == 7 * len(TASKS)
    records = [json.loads(path.read_text()) for path in table.parent.glob("*.json")]
    assert {record["stages"]["train"]["sources"]["backbone"]["hub"] for record in records} == {
        "FacebookAI/roberta-base"
    }
