"""The work of `run` and of the stage commands, and the summary that they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_drop import processes
from lora_drop.cli.libraries import quiet_libraries
from lora_drop.config.identity import to_dict
from lora_drop.config.loading import from_dict
from lora_drop.config.schema import Config
from lora_drop.files import read_json
from lora_drop.interruption import at_once
from lora_drop.progress import Reporter
from lora_drop.pruning.scores import Scored, Scores
from lora_drop.pruning.selection import Selection
from lora_drop.registry import METHODS, needs_selection
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import check, perform_all, perform_one, plan, stage_of
from lora_drop.runs.stages import BY_NAME
from lora_drop.runs.store import Run


@dataclass
class Summary:
    """The summary that is printed when the work is done."""

    scored: Sequence[Scored] = ()
    selection: Selection | None = None
    stability: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `stability.json`, if the importances were bootstrapped."""
    agreement: list[dict[str, Any]] = field(default_factory=list)
    """Kendall's τ of every two criteria on every projection, if criteria were compared."""
    results: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Sentences to print at the very end."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-like values; empty parts are left out, except results and remarks."""
        parts: dict[str, Any] = {
            "scores": [asdict(row) for row in self.scored],
            "selection": self.selection.to_json() if self.selection else None,
            "stability": self.stability,
            "agreement": self.agreement,
        }
        found = {name: part for name, part in parts.items() if part}
        return {**found, "results": self.results, "remarks": self.remarks}


def perform_stages(
    run_dir: Path, config: Config, stages: list[str], force: bool, report: Reporter, compare: list[str], first: str = ""
) -> Summary:
    """Perform stages in a run directory, then the same for the methods to compare.

    `stages` are names from `runs.stages.STAGES`, or "all". All runs are checked before the first of them writes
    anything; `first`, if not empty, is the first notice after that.
    """
    if _computes(stages):
        quiet_libraries(report)
        with at_once(report.close):
            import lora_drop.methods.start  # noqa: F401 - and PEFT, which the checks need
    jobs = _checked(run_dir, config, stages, force, report, compare)
    if first:
        report.notice(first)
    for number, job in enumerate(jobs):
        if number:
            report.notice(f"now training {METHODS.get(job.config.method.name).title}, for comparison")
        _perform_one(job, stages)
    return processes.by_first(lambda: _summary([job.run for job in jobs], stages, report))


def _checked(
    run_dir: Path, config: Config, stages: list[str], force: bool, report: Reporter, compare: list[str]
) -> list[Job]:
    """Check the runs and return them, the one of the directory first. Writes nothing."""
    for name in compare:
        METHODS.get(name)  # a wrong name must not show up only after the first training
    others = {name: _with_method(config, name) for name in compare}
    runs = [Run(run_dir, config), *(Run(run_dir / "compare" / name, other) for name, other in others.items())]
    jobs = [Job(run, report, force) for run in runs]
    for job in jobs:
        _check(job, stages)
    return jobs


def _with_method(config: Config, name: str) -> Config:
    """Return the configuration with another method, and with the options that this one declares, at their defaults."""
    values = to_dict(config)
    method = {key: value for key, value in values["method"].items() if key != "options"}
    return from_dict({**values, "method": {**method, "name": name}})


def _summary(runs: list[Run], stages: list[str], report: Reporter) -> Summary:
    """Read what is printed about the runs, and write their pages."""
    summary, run = Summary(), runs[0]
    if stages not in (["train"], ["picture"]) and needs_selection(run.config.method.name):
        _profile(run, summary, stages)
        if stages[-1] in ("score", "all") and run.config.score.compare and run.file("criteria.json").is_file():
            summary.agreement = read_json(run.file("criteria.json"))["agreement"]
    if stages in (["all"], ["eval"]):
        summary.results = [_result(run) for run in runs]
        report.doing("writing the page")
        _write_pages([run.path for run in reversed(runs)])
    if stages == ["select"] and not run.file("importance.png").is_file():
        summary.remarks.append(f"to draw a picture of this selection: lora-drop picture -d {run.path}")
    return summary


def _write_pages(folders: list[Path]) -> None:
    """Write report.html of each run; the main run's is last, since it also shows the runs to compare."""
    from lora_drop.report.page import PAGE, write_page

    for folder in folders:
        write_page([folder], folder / PAGE)


def _computes(stages: list[str]) -> bool:
    """Return False for stages that read neither rows nor weights, which must start at once."""
    return stages not in (["select"], ["picture"])


def _profile(run: Run, summary: Summary, stages: list[str]) -> None:
    """Read the importances and the selection to show; after `score` alone there is no selection yet."""
    scored_last = stages[-1] == "score"
    if _whole(run, "select") and _whole(run, "score") and not scored_last:
        summary.selection = Selection.load(run.file("selection.json"))
        summary.remarks += _plain(summary.selection, Scores.load(run.file("scores.json")).rows)
    # after `select` alone, the bootstrap may still be that of another threshold
    stability = run.file("stability.json")
    bootstrapped = run.config.score.bootstrap and (scored_last or stages == ["all"]) and _whole(run, "stability")
    if bootstrapped:
        summary.stability = read_json(stability)["modules"]
    if summary.selection or scored_last:
        summary.scored = Scores.load(run.file("scores.json")).rows


def _whole(run: Run, stage: str) -> bool:
    return run.whole(stage, BY_NAME[stage].outputs)


def _plain(selection: Selection, scored: Sequence[Scored]) -> list[str]:
    """Return a remark if nothing was dropped."""
    if selection.trainable_parameters < sum(row.parameters for row in scored):
        return []
    return [
        "LoRA-drop is plain LoRA here: each layer is retained, or is the only one left in its projection, with no "
        "other layer to share with. Lower method.threshold, or limit the parameters to a share of LoRA's with "
        "method.budget (--budget 0.5)"
    ]


def _check(job: Job, stages: list[str]) -> None:
    if _computes(stages):
        job.check()  # before its stages are looked up: a fault of the machine or the configuration explains more
    if stages == ["all"]:
        check(job, plan(job))
    else:
        check(job, [stage_of(job, name) for name in stages], alone=True)


def _perform_one(job: Job, stages: list[str]) -> None:
    # `eval` may use other rows; the stored configuration stays that of the training
    with job.run.working(job.report, store_config=stages != ["eval"]):
        if stages == ["all"]:
            perform_all(job)
        else:
            for stage in stages:
                perform_one(job, stage)


def _result(run: Run) -> dict[str, Any]:
    metrics = read_json(run.file("metrics.json"))
    trained, evaluated = run.manifest["stages"]["train"], run.manifest["stages"]["eval"]
    parameters = trained["trainable_parameters"]
    return {
        "method": METHODS.get(run.config.method.name).title,
        "parameters": parameters["adapter"],
        "head": parameters["head"],
        **metrics["metrics"],
        "split": metrics["split"],
        "n": metrics["examples"],
        "seed": run.config.seed,
        "epoch": trained["kept_epoch"],
        "select_epoch": trained["select_epoch"],
        "limited": {**trained["limited"], **evaluated["limited"]},
    }
