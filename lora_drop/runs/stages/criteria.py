"""Beside stage 2: score the same warm-up by several criteria, and measure their agreement."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.files import read_json, write_json
from lora_drop.registry import CRITERIA, METHODS
from lora_drop.runs.stages.base import (
    Stage,
    Values,
    Work,
    common_settings,
    criterion,
    digest_of,
    precision,
    scored_inputs,
)

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def others(job: Job) -> list[str]:
    """Return the criteria to compare with the one that the scores use."""
    return [name for name in dict.fromkeys(job.config.score.compare or ()) if name != job.config.score.criterion]


def settings(job: Job) -> Values:
    """Return the criteria, and the length at which inputs are truncated."""
    compared = [criterion(name, always=True) for name in (job.config.score.criterion, *others(job))]
    return {**common_settings(job), "criteria": compared, "max_length": job.config.train.max_length, **precision(job)}


def work(job: Job) -> Work:
    """Score the warm-up by each of the other criteria; write `criteria.json` and `criteria.png`."""
    from lora_drop.runs import models

    encoded, chosen = models.sampled(job), job.config.score.criterion
    model = models.load_adapter(job, METHODS.get("lora"), "warmup")
    way = models.find_way_for(job, model, encoded)
    modules = {chosen: read_json(job.run.file("scores.json"))["modules"]}
    for name in others(job):
        modules[name] = [asdict(row) for row in models.score(job, model, encoded, name, way).rows]
    processes.by_first(lambda: _write(job, modules))
    return f"{', '.join(modules)}: scored on one warm-up", {}


def _write(job: Job, modules: dict[str, list[Values]]) -> None:
    from lora_drop.pruning.agreement import agreement
    from lora_drop.pruning.criteria_picture import criteria_figure
    from lora_drop.pruning.picture import save_figure

    chosen, taus = job.config.score.criterion, agreement(modules)
    content = {
        "chosen": chosen,
        "criteria": {name: {"version": CRITERIA.get(name).version, "modules": rows} for name, rows in modules.items()},
        "agreement": taus,
    }
    write_json(job.run.file("criteria.json"), content)
    titles = {name: CRITERIA.get(name).title for name in modules}
    figure = criteria_figure(modules, titles, taus, f"{job.subject}, {job.config.backbone}")
    save_figure(figure, job.run.file("criteria.png"))


STAGE = Stage(
    name="criteria",
    help="Compare criteria.",
    version=1,
    outputs=("criteria.json", "criteria.png"),
    needs=("sample", "score"),
    settings=settings,
    inputs=lambda job: {**scored_inputs(job, "warmup", "score"), "scores": digest_of(job, "scores.json", "score")},
    work=work,
    wanted=lambda job: job.selects and bool(others(job)),
    command=False,
)
