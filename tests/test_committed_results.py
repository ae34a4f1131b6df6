"""The committed results, their tables, and the published values beside them."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from measured import RESULTS, record

from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, experiment_names, load_experiment
from lora_drop.experiments.published import load_published
from lora_drop.experiments.records import read_records
from lora_drop.experiments.report import TEXTS, report
from lora_drop.experiments.results import Results
from lora_drop.experiments.table import build_tables
from lora_drop.files import write_json

FOLDERS = sorted({path.parent for path in RESULTS.glob("*/*/*.json")})


def test_published_rows_belong_to_experiments_and_have_sources():
    published = load_published()
    for name in experiment_names():
        experiment = load_experiment(name)
        if experiment.published:
            entry = published[experiment.published]
            assert set(entry["rows"]) <= set(experiment.rows) and "2402.07721" in entry["source"]
            keys = {f"{task}.{metric}" for task in experiment.tasks for metric in experiment.metrics} or set(
                experiment.tasks
            )
            rows = [*entry["rows"].values(), *entry.get("elsewhere", ())]
            assert all(set(row["scores"]) <= keys and set(row.get("derived", ())) <= set(row["scores"]) for row in rows)
            assert all("arXiv" in row["source"] for row in entry.get("elsewhere", ()))
            assert entry["backbone"] == experiment.backbone


def test_published_averages_are_those_of_the_published_cells():
    """Table 6 is whole, and so is Full-FT in Table 1 with the derived cells."""
    full = load_published()["table1"]["rows"]["full"]
    assert full["average"] == pytest.approx(np.mean(list(full["scores"].values())), abs=0.05)
    rows = load_published()["table6"]["rows"]
    for row in rows.values():
        assert row["average"] == pytest.approx(np.mean(list(row["scores"].values())), abs=0.13)


def test_another_format_is_refused(tmp_path):
    folder = tmp_path / "table1" / "x"
    folder.mkdir(parents=True)
    write_json(folder / "a.json", {"version": 0})
    with pytest.raises(UserError, match=r"a\.json is not a result of this version"):
        report(tmp_path)


def test_a_record_of_the_first_format_says_of_each_stage_what_it_said_of_all(tmp_path):
    today = asdict(record("lora", "rte", 0, 0.7, limited={"train": 9}))
    told = {"versions": {"torch": "2.8"}, "device": "cuda", "threads": 2, "data": {"train": "d"}, "weights": "w"}
    stages = {"train": {"seconds": 1.0, "commit": "own"}, "eval": {"seconds": 2.0}}
    git = {"commit": "last", "dirty": True}
    folder = tmp_path / "table1" / "FacebookAI-roberta-base"
    write_json(folder / "a.json", {**today, **told, "git": git, "stages": stages, "version": 1})
    (read,) = read_records(folder)
    assert read.stages["train"] == {**told, "limited": {"train": 9}, "seconds": 1.0, "commit": "own"}
    assert read.stages["eval"] == {**told, "limited": {"train": 9}, "seconds": 2.0, "commit": "last+altered"}
    assert read == replace(record("lora", "rte", 0, 0.7, limited={"train": 9}), stages=read.stages)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_the_committed_tables_are_those_of_the_committed_results(folder):
    tables = build_tables(read_records(folder))
    for name, render in TEXTS.items():
        assert (folder / name).read_text(encoding="utf-8") == render(tables), (
            f"run: lora-drop report {folder.parent.name}"
        )
    for name in tables[0].records[0].layout["figures"]:
        assert (folder / f"{name}.png").is_file() and (folder / f"{name}.pdf").is_file()


ALTERED = {("mpnet", "stsb", seed) for seed in (0, 1)}
"""Made at a commit whose mpnet.yaml had been altered, in nothing but the epochs of MRPC, RTE and STS-B (results/README.md)."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_the_committed_results_are_whole_and_of_a_clean_commit(folder):
    for found in read_records(folder):
        for name, stage in found.stages.items():
            commit, _, altered = stage["commit"].partition("+")
            assert re.fullmatch("[0-9a-f]{40}", commit) and stage["versions"]["torch"]
            assert not altered or (found.experiment, found.task, found.seed) in ALTERED
            assert name in ("select", "picture") or stage["device"]  # which compute nothing
        assert not {"data_dir", "device"} & found.config.keys()


def test_the_readme_tells_what_the_tables_say():
    told = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    front = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    table = (RESULTS / "mpnet" / "packaged-mpnet-base" / "table.md").read_text(encoding="utf-8")
    claims, alike = (
        [line for line in table.partition(head)[2].partition(end)[0].splitlines() if line.startswith("| ")]
        for head, end in (("### Claims", "Differences of"), ("Is the ranking", "###"))
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in claims[1:]]
    assert len(rows) == 8
    for _, _, difference, here, elsewhere, pairs, verdict, other, interval, again, seeds in rows:
        (line,) = [line for line in told if f"| {difference}; {here}; {elsewhere}; {pairs}" in line]
        *_, judged, held_out, needed = (cell.strip() for cell in line.split("|")[1:-1])
        assert judged.startswith(verdict) and needed == seeds
        assert held_out.startswith(f"{other}; {interval}; {again}")
        assert f"| {difference} ({here}) | {other} ({interval}) |" in front
    assert len(alike) == 6 and set(alike[1:]) <= {line.strip() for line in told}
    slopes = table.partition("### Does the score rise")[2].splitlines()
    mean, here, elsewhere = (
        [cell.strip() for cell in line.split("|")[2:4]] for line in slopes if line[2:6] in ("mean", "95 %")
    )
    for parts in zip(mean, here, elsewhere, strict=True):
        assert any(line.endswith(f"| {'; '.join(parts)} |") for line in told)


@pytest.mark.parametrize("name", sorted({folder.parent.name for folder in FOLDERS} & set(experiment_names())))
def test_an_experiment_adds_to_its_committed_results(name):
    """Its file says today what they were made with; otherwise `reproduce` would refuse to go on."""
    Results(RESULTS).check(expand(load_experiment(name), Choice()))
