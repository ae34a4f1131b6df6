"""Performs the runs of a grid one after the other, each in a run directory of its own, and writes a record for each.

Every run is found by the hash of its configuration: what has a record is not repeated, what was killed is continued,
and a run that two experiments have in common is performed once. Several processes, also on several machines with one
file system, may work on a grid at the same time: each takes runs that no other process is working on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from lora_drop.config.schema import config_hash
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Planned, slug
from lora_drop.experiments.results import Results
from lora_drop.progress import GridReporter, Reporter
from lora_drop.provenance import release_memory
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import adopt, inputs_digest, perform, plan
from lora_drop.runs.store import Busy, Run

PATIENCE_S = 6 * 3600.0
"""A process that was stopped (not killed) keeps its locks: the others must not wait for ever."""


@dataclass
class Outcome:
    """The outcome of a grid."""

    performed: list[str] = field(default_factory=list)
    already: int = 0
    """Runs whose record was there."""
    busy: list[str] = field(default_factory=list)
    """Runs that another process is working on."""
    failed: dict[str, str] = field(default_factory=dict)
    """Message by run."""


def perform_grid(planned: Sequence[Planned], runs: Path, results: Results, report: GridReporter) -> Outcome:
    """Perform what has no record yet. A run that fails does not stop the others.

    Args:
        planned: the runs.
        runs: folder of the run directories.
        results: where a result is looked for, and written.
        report: told about progress.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the run under way has written a checkpoint.
    """
    outcome = Outcome()
    for text in results.notices(planned):
        report.notice(text)
    for number, run in enumerate(planned, 1):
        if results.has(run):  # asked for each in turn: another process may have done it meanwhile
            results.join(run)
            outcome.already += 1
            continue
        report.begin(run.name, number, len(planned))
        try:
            note = _perform_one(run, runs, results, report)
        except Busy:
            outcome.busy.append(run.name)
            note = "another process is working at it"
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told at the end, and the other runs go on
            note = outcome.failed[run.name] = f"{type(error).__name__}: {error}"
        else:
            outcome.performed.append(run.name)
        release_memory()
        report.end(run.name, note)
    return outcome


def run_directory(planned: Planned, runs: Path) -> Path:
    """Return where a run is performed; the same for all experiments that it belongs to."""
    config = planned.config
    return runs / slug(config.backbone) / f"{config.task}-s{config.seed}-{config.method.name}-{config_hash(config)}"


def _perform_one(planned: Planned, runs: Path, results: Results, report: Reporter) -> str:
    path, config = run_directory(planned, runs), planned.config
    path.parent.mkdir(parents=True, exist_ok=True)
    run = Run(path, config)
    job = Job(run, report, others=partial(_siblings, run))
    job.check()
    with run.working(report):
        stages = plan(job, planned.experiment.until)
        for stage in stages:
            if stage.shared:
                # another process that needs the same waits for it instead of making its own
                lock = FileLock(path.parent / f".{stage.name}-{inputs_digest(job, stage)}.lock")
                with _waited_for(lock, stage.name, report):
                    if not adopt(job, stage, job.others()):
                        perform(job, stage)
            else:
                perform(job, stage)
        results.write(planned, run, [stage.name for stage in stages])
    return str(run.manifest["stages"][planned.experiment.until or "eval"]["note"])


@contextmanager
def _waited_for(lock: FileLock, stage: str, report: Reporter) -> Iterator[None]:
    """Hold a lock, with a notice if another process has it. Raises Busy if that one keeps it for PATIENCE_S."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report.notice(f"another process is at the same {stage}; it is waited for, at most {PATIENCE_S / 3600:g} hours")
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout as error:
            raise Busy(f"Another process is at the same {stage}, and does not come to an end.") from error
    try:
        yield
    finally:
        lock.release()


def _siblings(run: Run) -> Iterator[Run]:
    """Yield the other runs of the same backbone, task and seed."""
    for path in sorted(run.path.parent.glob(f"{run.config.task}-s{run.config.seed}-*")):
        if path != run.path and (path / "run.json").is_file():
            try:
                yield Run(path, run.config)
            except UserError:  # damaged: told when its own turn comes
                continue
