"""The folder of results: look up which runs of an experiment have one, and write new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.config.identity import criterion_of, what_is_computed
from lora_drop.config.strict import leaves
from lora_drop.errors import UserError, counted
from lora_drop.experiments.grid import Planned, slug
from lora_drop.experiments.own_files import files_changed
from lora_drop.experiments.records import read_record, settings_today, versions_of
from lora_drop.files import write_json


@dataclass(frozen=True)
class Results:
    """The records `EXPERIMENT/BACKBONE/*.json` of a folder.

    A run has a result if there is a record of an equal configuration with all stages that the experiment now wants.
    Configurations are compared, not their hashes: a key that did not exist when the record was written has today's
    default.
    """

    folder: Path
    keep_old: bool = False
    """True if results of an older version of a stage, task or method also count."""

    def path(self, planned: Planned) -> Path:
        """Return the path of a run's record."""
        return self.folder / planned.experiment.name / slug(planned.config.backbone) / f"{planned.name}.json"

    def has(self, planned: Planned) -> bool:
        """Return True if the run need not be performed."""
        return bool(self._valid(planned))

    def join(self, planned: Planned) -> None:
        """Also record a run's result under the current overrides, if it was only made under others."""
        valid = self._valid(planned)
        if not any(content["overrides"] == planned.overrides for content in valid):
            changed = {"overrides": planned.overrides, "deviations": planned.deviations}
            write_json(self.path(planned), {**valid[0], **changed})

    def write(self, planned: Planned, record: Mapping[str, Any]) -> None:
        """Write the record of a run, replacing an older one."""
        write_json(self.path(planned), record)
        for path, content in self._equal(planned):
            if path != self.path(planned) and content["overrides"] == planned.overrides:
                path.unlink(missing_ok=True)  # another process may have done it

    def check(self, planned: Sequence[Planned]) -> None:
        """Raise UserError if a run has a result of another configuration, since a table has room for only one."""
        others = [found for run in planned for found in self._others(run)]
        if not others:
            return
        run, path, content = others[0]
        there, here = leaves(settings_today(content)), leaves(what_is_computed(run.config))
        keys = [key for key in {**there, **here} if key != "seed" and there.get(key) != here.get(key)]
        differ = [f"{key} is {there.get(key)} there, {here.get(key)} now" for key in keys[:3]] + ["…"] * (len(keys) > 3)
        raise UserError(
            f"{path} has the result of {run.row}, {run.config.task}, seed {content['seed']}, with another "
            f"configuration: {'; '.join(differ)}{f' ({len(others)} such results)' if others[1:] else ''}. A table can "
            f"show only one of them: move the old result out of {self.folder}, or name another folder for the new one "
            "with --results."
        )

    def notices(self, planned: Sequence[Planned]) -> list[str]:
        """Return notices about the versions that made the results of these runs, and about faulty results."""
        found = [[content for _, content in self._equal(run)] for run in planned]
        old = [contents for contents in found if contents and all(map(_older, contents))]
        unknown = [contents for contents in found if contents and not any(each.get("made_by") for each in contents)]
        told = [f"not counted: {fault}" for fault in self._faults(planned)]
        changed = sum(not equal and any(self._same(run)) for run, equal in zip(planned, found, strict=True))
        if changed:
            told.append(
                f"{counted(changed, 'result')} made from other data or models than there are now: performed again"
            )
        if old:
            versions = "; ".join(dict.fromkeys(text for contents in old for each in contents for text in _older(each)))
            fate = "they are kept" if self.keep_old else "these runs are performed again, unless --keep-old is given"
            told.append(f"{len(old)} results are of an older version ({versions}): {fate}")
        if unknown:
            told.append(f"{len(unknown)} results do not say which versions made them; they count as done")
        return told

    def _faults(self, planned: Sequence[Planned]) -> Iterator[str]:
        for folder in sorted({self.path(run).parent for run in planned}):
            for path in sorted(folder.glob("*.json")):
                try:
                    read_record(path)
                except UserError as error:
                    yield str(error)

    def _valid(self, planned: Planned) -> list[dict[str, Any]]:
        whole = (content for _, content in self._equal(planned) if planned.last_stage in content["stages"])
        return [content for content in whole if self.keep_old or not _older(content)]

    def _equal(self, planned: Planned) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path, content in self._same(planned):
            if not files_changed(content["stages"], planned.config):
                yield path, content

    def _same(self, planned: Planned) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the records of the run's configuration, also those that were made from other files."""
        wanted = what_is_computed(planned.config)
        for path, content in self._alike(planned):
            if settings_today(content) == wanted:
                yield path, content

    def _others(self, planned: Planned) -> Iterator[tuple[Planned, Path, dict[str, Any]]]:
        """Yield the records of another configuration in the run's cell of the table, of any seed, with the run."""
        mine = what_is_computed(planned.config)
        for path, content in self._alike(planned, seed="*"):
            same = settings_today(content) == {**mine, "seed": content["seed"]}
            asked = (content["row"], content["task"], content["overrides"])
            if (
                not same
                and path != self.path(planned)
                and asked == (planned.row, planned.config.task, planned.overrides)
            ):
                yield planned, path, content

    def _alike(self, planned: Planned, seed: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the records of the same row, task and seed (or of those that a pattern names), by their names."""
        pattern = f"{slug(planned.row)}-{slug(planned.config.task)}-s{seed or planned.config.seed}-*.json"
        for path in sorted(self.path(planned).parent.glob(pattern)):
            try:
                yield path, read_record(path)
            except UserError:  # named in `notices`; the run is performed, and its record takes the place of this one
                continue


def _older(content: dict[str, Any]) -> list[str]:
    """Return the versions that made a record and are no longer current; empty if the record does not state them."""
    made_by, criterion = content.get("made_by", {}), criterion_of(content["config"])
    if made_by and "score" in content["stages"]:
        made_by = {f"criterion {criterion}": 1, **made_by}  # records without a criterion's version are of the first
    now = versions_of(content["task"], content["method"], content["stages"], criterion)
    return [f"{name}: {made_by[name]}, now {now[name]}" for name in made_by if made_by[name] != now.get(name)]
