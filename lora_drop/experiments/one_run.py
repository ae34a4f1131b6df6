"""One run of a grid, in a directory named after the hash of its configuration.

A killed run is continued. A stage that another run of the same backbone, task and seed has done from the same inputs is
copied. File locks keep two processes from doing the same work, on one machine or on a file system that machines share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lora_drop.config.identity import config_hash
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Planned, slug
from lora_drop.experiments.records import gather
from lora_drop.progress import Reporter
from lora_drop.provenance import release_memory
from lora_drop.runs.job import Job
from lora_drop.runs.locks import Busy, hold
from lora_drop.runs.pipeline import adopt, check, perform, plan, turn_digest
from lora_drop.runs.store import Run


@dataclass(frozen=True)
class End:
    """How a run ended."""

    note: str
    """Its result in a few words, or why there is none."""
    record: dict[str, Any] | None = None
    """The content of its record (`records.Record`), if it was performed."""
    busy: Path | None = None
    """The lock held by another process, if that is why the run was not performed."""


def run_directory(planned: Planned, runs: Path) -> Path:
    """Return the directory of a run; it is the same for all experiments that the run belongs to."""
    config = planned.config
    return (
        runs / slug(config.backbone) / f"{slug(config.task)}-s{config.seed}-{config.method.name}-{config_hash(config)}"
    )


def perform_run(planned: Planned, runs: Path, report: Reporter) -> End:
    """Perform what is left of a run. Errors are returned as its end; Ctrl-C and SIGTERM are raised, after a checkpoint.

    Args:
        planned: the run.
        runs: folder of the run directories.
        report: receives the progress of its stages.
    """
    try:
        return _performed(planned, runs, report)
    except Busy as error:
        return End(str(error), busy=error.lock)
    except Exception as error:  # noqa: BLE001 - any error is reported at the end, and the other runs go on
        return End(f"{type(error).__name__}: {error}")
    finally:
        release_memory()


def _performed(planned: Planned, runs: Path, report: Reporter) -> End:
    path, config = run_directory(planned, runs), planned.config
    run = Run(path, config)
    job = Job(run, report, others=partial(_siblings, run))
    job.check()
    stages = plan(job, planned.experiment.until)
    check(job, stages)
    with run.working(report):
        for stage in stages:
            lock = path.parent / f".{stage.name}-{turn_digest(job, stage)}.lock" if stage.shared else None
            with hold(lock, f"Another process is working on the same {stage.name}") if lock else nullcontext():
                if not (stage.shared and adopt(job, stage)):
                    perform(job, stage)
        record = asdict(gather(planned, run, [stage.name for stage in stages]))
    return End(str(run.manifest["stages"][planned.experiment.until or "eval"]["note"]), record)


def _siblings(run: Run) -> Iterator[Run]:
    """Yield the other runs of the same backbone, task and seed."""
    for path in sorted(run.path.parent.glob(f"{slug(run.config.task)}-s{run.config.seed}-*")):
        if path != run.path and (path / "run.json").is_file():
            try:
                yield Run(path, run.config)
            except UserError:  # damaged: reported when its own turn comes
                continue
