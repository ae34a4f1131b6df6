"""The run directory: its artefacts, its manifest, and its lock, which admits one process at a time.

| file | holds |
|---|---|
| `config.yaml` | the resolved configuration |
| `sample.json`, `scores.json`, `selection.json` | stages 1 to 3 |
| `warmup/`, `adapter/` | adapters in PEFT's format; the warm-up also has the loss of each step, `losses.json` |
| `checkpoints/` | for resuming; removed when the stage that wrote them is done |
| `metrics.json`, `predictions.jsonl` | stage 5 |
| `run.json` | the manifest: status, the run itself, and the inputs, circumstances, cost and outputs of each stage |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_drop import processes
from lora_drop.config.files import read_sealed, sealed
from lora_drop.config.identity import config_hash, subject, to_yaml
from lora_drop.config.loading import from_dict
from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.files import (
    OURS,
    copy_files,
    digest,
    file_digest,
    read_json,
    remove,
    sweep,
    write_folder,
    write_json,
    write_text,
)
from lora_drop.progress import SILENT, Reporter
from lora_drop.provenance import commit
from lora_drop.runs.locks import LOCK, Busy, hold, refuse_held
from lora_drop.training.environment import neutral_environment

FORMAT = 3
"""Format of `run.json`. Older formats did not seal the entries of stages, so those stages are done again."""
OUTPUTS = (
    *("sample.json", "scores.json", "selection.json", "metrics.json", "predictions.jsonl", "norms.json"),
    *("stability.json", "criteria.json", "criteria.png", "importance.png", "scores_trained.json", "report.html"),
    *("warmup", "adapter", "checkpoints", "compare"),
)
"""Names that a run replaces or removes. In a folder that is not a run directory, they are the user's own files."""
EXPORTS = ("export/peft", "export/compact", "export/merged")
"""Folders that an export replaces; others in `export` are the user's own."""
RECORDS = ("run.json", "config.yaml", "logs/warmup", "logs/train")
"""Other paths that a run writes, besides its lock; the last two belong to trackers."""
INPUTS = "inputs"
"""Name of the file that records what the checkpoints beside it were made from."""
SEAL = "seal"
"""Key of a stage's entry with the digest of all its other keys, which reveals an altered entry."""


class Run:
    """A run directory. Its configuration is given, and written by `working`, or else read from `config.yaml`."""

    def __init__(self, path: str | Path, config: Config | None = None):
        """Open `path`. Raises UserError if no configuration is given and the directory has none."""
        self.path = Path(path)
        if config is None:
            stored = stored_config(self.path)
            if stored is None:
                raise UserError(
                    f"{self.path} is not a run directory: it has no config.yaml. Make one with: lora-drop run"
                )
            config = from_dict(read_sealed(stored))
        self.config = config
        self._read_manifest()

    def _read_manifest(self) -> None:
        self.manifest: dict[str, Any]
        self.manifest, self.damaged = read_manifest(self.path)

    def file(self, name: str) -> Path:
        """Return the path of an artefact."""
        return self.path / name

    def require(self, name: str, stage: str) -> Path:
        """Return the path of another stage's artefact. Raises UserError naming that stage if it is missing."""
        path = self.path / name
        if not path.exists():
            raise UserError(f"{path} does not exist. Make it with: lora-drop {stage} --run-dir {self.path}")
        return path

    @contextmanager
    def working(self, report: Reporter = SILENT, store_config: bool = True) -> Iterator[None]:
        """Hold the directory, write the configuration, and record how the work ends.

        Several processes that work together hold the directory as one.

        Args:
            report: receives a notice of the environment variables that are ignored meanwhile
                (`training/environment.py`).
            store_config: True to write `config.yaml`.

        Raises:
            Busy: if another process works in the same directory.
            UserError: if the directory cannot be made, or this process was launched as one of several but works on its
                own.
        """
        held = self._held(store_config) if processes.rank() == 0 else nullcontext()
        with neutral_environment(report), held:
            self.manifest, self.damaged = processes.by_first(lambda: (self.manifest, self.damaged))
            yield

    def check(self) -> None:
        """Raise Busy or UserError where `working` would, except for errors that only writing shows. Writes nothing."""
        _refuse_foreign(self.path)
        refuse_held(self.path / LOCK, self._busy)

    @property
    def _busy(self) -> str:
        return f"Another process is working in {self.path}. Wait for it, or name another directory with --run-dir"

    @contextmanager
    def _held(self, store_config: bool) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The run directory {self.path} cannot be made ({error.strerror}). Name another with --run-dir."
            ) from error
        _refuse_foreign(self.path)
        with hold(self.path / LOCK, self._busy), self._end_recorded():
            sweep(self.path)
            self._read_manifest()  # it may have been opened before another process worked here
            commit()  # cached from now on, as its docstring explains
            if store_config:  # without what applies to this command and machine only
                stored = to_yaml(replace(self.config, device="auto", offline=False))
                write_text(self.file("config.yaml"), sealed(stored))
                self.record(**_identity(self.config))
            self.record(status="running", error=None)
            yield
            self.record(status="interrupted" if self._can_continue() else "done")

    @contextmanager
    def _end_recorded(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, Busy):
            self._record_end(status="interrupted")
            raise
        except BaseException as error:
            self._record_end(status="failed", error=f"{type(error).__name__}: {error}")
            raise

    def checkpoints(self, stage: str) -> Path:
        """Return the folder in which a stage keeps what it needs to continue after a kill."""
        return self.path / "checkpoints" / stage

    def _can_continue(self) -> bool:
        """Return True if a stage that was interrupted has left something to continue from, whatever was done since."""
        return any(path.name != INPUTS for path in self.path.glob("checkpoints/*/*"))

    def entry(self, stage: str) -> dict[str, Any]:
        """Return the manifest's entry of a stage; empty if it was not done."""
        return self.manifest["stages"].get(stage, {})

    def whole(self, stage: str, outputs: Sequence[str]) -> bool:
        """Return True if the outputs of a stage are as it wrote them."""
        return bool(self.entry(stage)) and self.entry(stage)["outputs"] == self.digests(outputs)

    def digests(self, outputs: Sequence[str]) -> dict[str, str]:
        """Return a hash of each artefact's content; empty for a missing one."""
        return {name: file_digest(self.path / name) for name in outputs}

    def enter(self, stage: str, entry: dict[str, Any]) -> None:
        """Write a stage's entry into the manifest."""
        self.manifest["stages"][stage] = {**entry, SEAL: _seal(entry)}
        self.damaged = [name for name in self.damaged if name != stage]
        self.record()

    def forget(self, stage: str, outputs: Sequence[str]) -> None:
        """Remove a stage's entry and outputs, since their inputs are about to change."""
        if self.manifest["stages"].pop(stage, None):
            self.record()
        for name in outputs:
            remove(self.file(name))

    def keep_checkpoints_of(self, stage: str, key: str, force: bool) -> bool:
        """Remove checkpoints made from other inputs; return True if any are left to continue from."""
        folder = self.checkpoints(stage)
        owner = folder / INPUTS
        if force or not _holds(owner, key):
            self.remove_checkpoints(stage)
            write_text(owner, key)
        return any(path != owner for path in folder.iterdir())

    def remove_checkpoints(self, stage: str) -> None:
        """Remove a stage's checkpoints. Raises UserError if `checkpoints` is a link to elsewhere."""
        folder = self.checkpoints(stage)
        if folder.parent.is_symlink():
            raise UserError(
                f"{folder.parent} is a link. Only content of the run directory itself is ever removed: replace the "
                "link with a folder."
            )
        if folder.parent.is_dir():
            sweep(folder.parent)
        remove(folder)

    def copy(self, source: Path, name: str) -> None:
        """Copy an artefact of another run."""
        if source.is_dir():
            with write_folder(self.file(name)) as folder:
                copy_files(source, folder)
        else:
            write_text(self.file(name), source.read_text(encoding="utf-8"))

    def _record_end(self, **values: Any) -> None:
        """Record how the work ended, unless nothing can be written (a full disk)."""
        with suppress(OSError):
            self.record(**values)

    def record(self, **values: Any) -> None:
        """Update the manifest with these values of the run itself, and write it."""
        self.manifest |= values
        write_json(self.path / "run.json", self.manifest)


def stored_config(path: Path) -> Path | None:
    """Return the path of a run directory's configuration; None if there is no run yet.

    Raises UserError for a run without one, since another configuration would silently take its place.
    """
    stored = path / "config.yaml"
    if stored.exists():
        return stored
    manifest, damaged = read_manifest(path)
    if manifest["stages"] or damaged:
        raise UserError(f"{path} holds a run, but its config.yaml is missing. Give the configuration with -c FILE.")
    return None


def own_entries(path: Path) -> list[Path]:
    """Return what runs have written into a folder, the lock last; everything else in it is the user's own."""
    left_over = [each.name for each in path.glob(".*.tmp") if OURS.fullmatch(each.name)]
    named = [path / name for name in (*OUTPUTS, *RECORDS, *left_over)]
    return [each for each in (*exports(path), *named, path / LOCK) if each.exists() or each.is_symlink()]


def exports(path: Path) -> list[Path]:
    """Return the exports inside a run directory, with what a killed one has left. A link is not followed."""
    place = path / "export"
    if place.is_symlink():
        return []
    left_over = [each for each in place.glob(".*.tmp") if OURS.fullmatch(each.name)]
    return [each for each in (*(path / name for name in EXPORTS), *left_over) if each.exists() or each.is_symlink()]


def _refuse_foreign(path: Path) -> None:
    """Raise UserError for a folder that is not a run directory but has a name that a run would replace."""
    manifest = path / "run.json"
    if manifest.is_file() and not (path / "config.yaml").exists() and b'"format"' not in manifest.read_bytes():
        raise UserError(f"{manifest.absolute()} was not written by a run. Name another folder with --run-dir.")
    if any((path / name).exists() for name in (LOCK, "run.json", "config.yaml")):
        return
    for name in (*OUTPUTS, "export"):
        if (path / name).exists():
            raise UserError(
                f"{path.absolute()} is not a run directory, but has {name}. Name another folder with --run-dir."
            )


def read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the content of `run.json`, and the stages with an altered entry, which count as not done.

    Of a run of an older format no stage counts, and only an entry that is none at all is altered.

    Raises UserError if the file is not a manifest at all.
    """
    fresh: dict[str, Any] = {"format": FORMAT, "status": "new", "stages": {}}
    file = path / "run.json"
    stored = read_json(file) if file.exists() else fresh
    if not isinstance(stored, dict) or not isinstance(stored.get("stages", {}), dict):
        raise UserError(f"{file} is damaged, and its record of each stage is lost. Remove it, and repeat the run.")
    stages = stored.get("stages", {})
    if stored.get("format") != FORMAT:
        return fresh, [name for name, entry in stages.items() if not isinstance(entry, dict)]
    whole = {
        name: entry for name, entry in stages.items() if isinstance(entry, dict) and entry.get(SEAL) == _seal(entry)
    }
    return {**stored, "stages": whole}, [name for name in stages if name not in whole]


def _seal(entry: dict[str, Any]) -> str:
    return digest({key: value for key, value in entry.items() if key != SEAL})


def _holds(path: Path, text: str) -> bool:
    """Return True if a file exists, is not a link, and has the content `text`."""
    return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()


def _identity(config: Config) -> dict[str, Any]:
    """Return the entries of `run.json` about the run itself; all others are about a stage."""
    return {
        "task": config.task,
        "subject": subject(config.task, vars(config.data)),
        "backbone": config.backbone,
        "method": config.method.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
    }
