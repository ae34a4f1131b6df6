"""Perform the stages of a run, skipping those that are unchanged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_drop import processes
from lora_drop.errors import UserError
from lora_drop.faults import as_sentences
from lora_drop.files import digest
from lora_drop.provenance import commit, other_versions, peak_memory_mb, release_memory, reset_peak_memory, versions
from lora_drop.runs.job import Job
from lora_drop.runs.stages import BY_NAME, STAGES
from lora_drop.runs.stages.base import Stage
from lora_drop.runs.stages.evaluate import forget as forget_evaluation

MEMORY = (
    "Lower train.device_batch_size (in an evaluation, eval.batch_size) or train.max_length, or set "
    "train.gradient_checkpointing=true. The same command continues."
)


def plan(job: Job, until: str = "") -> list[Stage]:
    """Return the stages of a run in order, up to the stage `until` if given. Raises UserError if the run lacks it."""
    stages = [stage for stage in STAGES if stage.wanted(job)]
    if not until:
        return stages
    if BY_NAME.get(until) not in stages:
        raise UserError(_no_stage(job, until))
    return stages[: stages.index(BY_NAME[until]) + 1]


def check(job: Job, stages: Sequence[Stage], alone: bool = False) -> None:
    """Raise an error, before anything is written, for whatever would end these stages later.

    Examples are rows that cannot be read, a model of another kind, and an adapter that does not fit the model.

    Args:
        job: the run.
        stages: the stages to be performed, in order.
        alone: True if the stages before the first one are not performed but must be done already.

    Raises:
        Busy: if another process works in the directory.
        UserError: if anything is wrong; also if an earlier stage was not done from this configuration or its outputs
            were altered since, or if a model of another task would be lost.
    """
    processes.by_first(job.run.check)
    if alone:
        processes.by_first(lambda: _require_all(job, stages[0]))
    parts = {part for stage in stages for part in stage.rows(job)}
    if "train" in parts:
        processes.by_first(lambda: _refuse_another_task(job))
    if parts:
        job.data.check(parts)
    names = {stage.name for stage in stages}
    if "eval" in names and "train" not in names:
        from lora_drop.runs.load import check_trained

        processes.by_first(lambda: check_trained(job))
    if names & {"score", "train"}:
        from lora_drop.runs.shapes import check_shapes

        job.report.doing("comparing shapes")
        check_shapes(job, names)


def _refuse_another_task(job: Job) -> None:
    """Raise UserError if a model trained on another task or file would be lost, as in a directory named by mistake."""
    there = job.run.manifest.get("subject", job.subject)
    if there != job.subject and job.run.entry("train") and not job.force:
        raise UserError(
            f"{job.run.path} holds a model trained on {there}, and this command, which is about {job.subject}, would "
            "replace it. Name another folder with --run-dir, or use --force."
        )
    was = _other_file(job)
    if was and not job.force:
        raise UserError(
            f"{job.run.path} holds a model trained on {was}, and this command, which is about another file, "
            f"{job.config.data.path}, would replace it. Name another folder with --run-dir, or use --force."
        )


def _other_file(job: Job) -> str:
    """Return the user's file that the directory's model was trained on, if the command names a different one.

    Otherwise return an empty string. A file that was moved, or has changed in place, is not a different one.
    """
    was = job.run.entry("train").get("sources", {}).get("train", {})
    now = job.config.data.path
    if not now or "file" not in was or Path(was["file"]).resolve() == Path(now).expanduser().resolve():
        return ""
    from lora_drop.tasks.own.task import own_contents

    return "" if own_contents(job.config.data).get("train") in (None, was.get("content")) else str(was["file"])


def perform_all(job: Job) -> None:
    """Perform every stage of the run."""
    for stage in plan(job):
        perform(job, stage)


def stage_of(job: Job, name: str) -> Stage:
    """Return a stage by name. Raises UserError if the run does not have it."""
    stage = BY_NAME[name]
    if not stage.wanted(job):
        raise UserError(f"{_no_stage(job, name)} Use: lora-drop train")
    return stage


def _no_stage(job: Job, name: str) -> str:
    """Return the reason why a run does not have the stage of this name."""
    if not job.selects:
        return f"The method {job.method.name} has no stage {name}: it needs no selection of layers."
    asked = {"norms": "score.norms=true", "stability": "score.bootstrap=200", "criteria": "score.compare=[weight]"}
    return f"The run has a stage {name} only if it is requested: -o {asked.get(name, f'score.{name}=true')}"


def perform_one(job: Job, name: str) -> None:
    """Perform one stage and the stages that go with it.

    Raises:
        UserError: if an earlier stage was not done from this configuration, or its outputs were altered since.
    """
    stage = stage_of(job, name)
    processes.by_first(lambda: _require_all(job, stage))
    for each in (stage, *(BY_NAME[other] for other in stage.beside)):
        if each.wanted(job):
            perform(job, each)


def perform(job: Job, stage: Stage) -> None:
    """Perform a stage unless its outputs already exist from the same inputs; record inputs, circumstances and cost.

    Outputs that were altered, or made from inputs that have changed since, are made again.
    """
    run, report = job.run, job.report
    report.doing(f"{stage.name}: comparing its inputs with those of the existing outputs")
    key = processes.by_first(lambda: inputs_digest(job, stage))
    if processes.by_first(lambda: _unchanged(job, stage, key)):
        return
    if stage.name in run.damaged:
        report.notice(f"run.json is damaged in its entry for the stage {stage.name}, which is repeated")
    report.start(stage.name)
    resumed = processes.by_first(lambda: run.keep_checkpoints_of(stage.name, key, job.force))
    release_memory()
    reset_peak_memory()
    began = time.perf_counter()
    with as_sentences(MEMORY):
        note, facts = stage.work(job) if stage.model else processes.by_first(lambda: stage.work(job))
    seconds = time.perf_counter() - began
    cost = {"seconds": round(seconds, 2), "peak_memory_mb": max(processes.everywhere(peak_memory_mb()))}
    cost |= {"processes": processes.size()} if stage.model and processes.size() > 1 else {}
    again = {"resumed": True} if resumed else {}  # the cost is then that of the last process only
    processes.by_first(lambda: _enter(job, stage, key, note, {**cost, **facts, **again}))
    report.finish(stage.name, seconds, note)


def _unchanged(job: Job, stage: Stage, key: str) -> bool:
    """Return True, and report it, if a stage need not be performed."""
    run, report, entry = job.run, job.report, job.run.entry(stage.name)
    if job.force or entry.get("inputs") != key or not run.whole(stage.name, stage.outputs):
        return False
    run.remove_checkpoints(stage.name)  # a kill may have left them
    _note_files(job, stage, entry)
    report.skip(stage.name, f"unchanged ({entry['note']})")
    others = other_versions(entry["versions"])
    if others and stage.rows(job):
        report.notice(f"{stage.name} was done with {others}; its outputs are kept. To repeat it here: --force")
    return True


def _note_files(job: Job, stage: Stage, entry: dict[str, Any]) -> None:
    """Record the content of files that have changed without changing a row, for example in their line ends."""
    known, now = entry.get("sources", {}), job.source.origins
    changed = {
        name: now[name]
        for name, origin in known.items()
        if "content" in origin and "content" in now.get(name, {}) and now[name] != origin
    }
    if changed:
        job.run.enter(stage.name, {**entry, "sources": {**known, **changed}})


def _enter(job: Job, stage: Stage, key: str, note: str, facts: dict[str, Any]) -> None:
    """Write a performed stage into the manifest, and remove its checkpoints."""
    run = job.run
    made = {"inputs": key, "settings": digest(stage.settings(job)), "outputs": run.digests(stage.outputs), "note": note}
    run.enter(stage.name, {**made, "commit": commit(), "versions": versions(), **_circumstances(job, stage), **facts})
    run.remove_checkpoints(stage.name)


def adopt(job: Job, stage: Stage) -> bool:
    """Copy a stage from the first other run that did it from the same inputs; return True if it is now done here.

    The entry keeps the cost and circumstances of that run, and names it.
    """
    key = inputs_digest(job, stage)
    for other in (job.run, *job.others()):
        entry = other.entry(stage.name)
        if entry.get("inputs") != key or not other.whole(stage.name, stage.outputs):
            continue
        if other is not job.run:
            for name in stage.outputs:
                job.run.copy(other.file(name), name)
            if stage.name == "train":
                forget_evaluation(job.run)
            job.run.enter(stage.name, {"shared_from": other.path.name, **entry})
        job.run.remove_checkpoints(stage.name)  # left by this run's own killed attempt
        return True
    return False


def inputs_digest(job: Job, stage: Stage) -> str:
    """Return the hash of everything a stage's outputs depend on.

    Raises UserError if the outputs of an earlier stage are missing.
    """
    return digest([stage.name, stage.version], stage.settings(job), stage.inputs(job))


def turn_digest(job: Job, stage: Stage) -> str:
    """Return the hash of what determines the longest part of a shared stage.

    Runs with the same hash must not do that part at the same time.
    """
    return digest([stage.name, stage.version], (stage.long or stage.settings)(job), stage.inputs(job))


def _circumstances(job: Job, stage: Stage) -> dict[str, Any]:
    """Return what a stage was computed with, and on which rows; a stage that reads no rows has neither."""
    parts = stage.rows(job)
    if not parts:
        return {"limited": {}}
    import torch

    where = {"device": str(job.device), "threads": torch.get_num_threads()}
    model = {"backbone": job.config.backbone, "weights": job.backbone.identity}
    return {**where, **model, **job.data.used(parts), "sources": job.sources}


def _before(job: Job, stage: Stage) -> list[Stage]:
    """Return all stages that a stage builds on, directly or not; for the evaluation, only the training."""
    found: list[Stage] = []
    for name in stage.needs:
        needed = BY_NAME[name]
        if needed.wanted(job):
            found += [*(_before(job, needed) if stage.name != "eval" else ()), needed]
    return list(dict.fromkeys(found))


def _require_all(job: Job, stage: Stage) -> None:
    for upstream in _before(job, stage):
        _require(job, upstream, reads_training_rows="train" in stage.rows(job))


def _require(job: Job, upstream: Stage, reads_training_rows: bool) -> None:
    """Raise UserError unless a stage was done from this configuration and its outputs are as it wrote them.

    A stage that reads training rows also requires the same rows and weights. A selection or an evaluation does not,
    since it may run where they are missing.
    """
    run = job.run
    path = run.require(upstream.outputs[0], upstream.name)
    entry = run.entry(upstream.name)
    same = entry.get("settings") == digest(upstream.settings(job))
    if same and upstream.model and entry["backbone"] != job.config.backbone:  # another name may be the same model
        same = entry["weights"] == job.backbone.identity
    if same and reads_training_rows:
        same = entry.get("inputs") == inputs_digest(job, upstream)
    remedy = (
        f"Repeat it with: lora-drop {upstream.name} (or all that is needed with: lora-drop run) and the same options."
    )
    if not same:
        raise UserError(
            f"{path} was made with another configuration, or from other data, than this command uses. {remedy}"
        )
    if not run.whole(upstream.name, upstream.outputs):
        raise UserError(f"{path} has changed since the stage {upstream.name} wrote it. {remedy}")
