"""The run directory: its artefacts, its manifest, and one process at a time.

| file | holds |
|---|---|
| `config.yaml` | the resolved configuration |
| `sample.json`, `scores.json`, `selection.json` | stages 1 to 3 |
| `warmup/`, `adapter/` | adapters in PEFT's format; the warm-up with the loss of each step, `losses.json` |
| `checkpoints/` | for resuming; removed when the stage that wrote them is done |
| `metrics.json`, `predictions.jsonl` | stage 5 |
| `run.json` | the manifest: status, the run, and per stage what it was made from, computed with, cost and gave |
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lora_drop.config.schema import Config, config_hash, from_dict, to_yaml
from lora_drop.errors import UserError
from lora_drop.files import file_digest, read_json, write_folder, write_json, write_text
from lora_drop.progress import SILENT, Reporter
from lora_drop.provenance import commit
from lora_drop.training.environment import neutral_environment

FORMAT = 2
"""Of `run.json`. An older one did not say what each stage was computed with, so that its stages are done anew."""


class Busy(UserError):
    """Another process is working in the run directory."""


class Run:
    """A run directory. Opening it with a configuration writes `config.yaml`; opening it without reads it."""

    def __init__(self, path: str | Path, config: Config | None = None):
        """Open `path`. Raises UserError if there is no configuration, neither given nor in the directory."""
        self.path = Path(path)
        stored = self.path / "config.yaml"
        if config is None:
            if not stored.is_file():
                raise UserError(
                    f"{self.path} is not a run directory: it has no config.yaml. "
                    "Give a configuration with -c or -o key=value."
                )
            config = from_dict(yaml.safe_load(stored.read_text(encoding="utf-8")) or {})
        self.config = config
        self._read_manifest()

    def _read_manifest(self) -> None:
        manifest = self.path / "run.json"
        stored = read_json(manifest) if manifest.is_file() else {}
        fresh = {"format": FORMAT, "status": "new", "stages": {}}
        self.manifest: dict[str, Any] = stored if stored.get("format") == FORMAT else fresh

    def file(self, name: str) -> Path:
        """Return the path of an artefact."""
        return self.path / name

    def require(self, name: str, stage: str) -> Path:
        """Return the path of what another stage makes. Raises UserError naming that stage if it is missing."""
        path = self.path / name
        if not path.exists():
            raise UserError(f"{path} does not exist. Make it with: lora-drop {stage} --run-dir {self.path}")
        return path

    @contextmanager
    def working(self, report: Reporter = SILENT, store_config: bool = True) -> Iterator[None]:
        """Hold the directory for this process, write the configuration, and record how the work ends.

        Args:
            report: gets a notice of the environment variables that are ignored meanwhile (`training/environment.py`).
            store_config: whether `config.yaml` is written.

        Raises:
            Busy: if another process works in the same directory.
            UserError: if the directory cannot be made, or this process was launched as one of several.
        """
        with neutral_environment(report), self._held(store_config):
            yield

    @contextmanager
    def _held(self, store_config: bool) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The run directory {self.path} cannot be made ({error.strerror}). Name another with --run-dir."
            ) from error
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Busy(
                f"Another process is working in {self.path}. Wait for it, or name another directory with --run-dir."
            ) from error
        try:
            _sweep(self.path)
            self._read_manifest()  # it may have been opened before another process worked here
            commit()  # asked now: see there
            if store_config:  # but what holds for this command and this machine alone
                write_text(self.file("config.yaml"), to_yaml(replace(self.config, device="auto", offline=False)))
                self.record(**_identity(self.config))
            self.record(status="running", error=None)
            yield
            self.record(status="done")
        except KeyboardInterrupt:
            self.record(status="interrupted")
            raise
        except BaseException as error:
            self.record(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            lock.release()

    def checkpoints(self, stage: str) -> Path:
        """Return the folder in which a stage keeps what it needs to continue after a kill."""
        return self.path / "checkpoints" / stage

    def entry(self, stage: str) -> dict[str, Any]:
        """Return what the manifest says of a stage; empty if it was not done."""
        found: dict[str, Any] = self.manifest["stages"].get(stage, {})
        return found

    def whole(self, stage: str, outputs: Sequence[str]) -> bool:
        """Return True if the outputs of a stage are those that it wrote."""
        return bool(self.entry(stage)) and self.entry(stage)["outputs"] == self.digests(outputs)

    def digests(self, outputs: Sequence[str]) -> dict[str, str]:
        """Return a hash of the content of each artefact; empty for one that is not there."""
        return {name: file_digest(self.path / name) for name in outputs}

    def enter(self, stage: str, entry: dict[str, Any]) -> None:
        """Write what the manifest is to say of a stage."""
        self.manifest["stages"][stage] = entry
        self.record()

    def forget(self, stage: str, outputs: Sequence[str]) -> None:
        """Remove what a stage has made, since what it was made from is about to change."""
        if self.manifest["stages"].pop(stage, None):
            self.record()
        for name in outputs:
            self.file(name).unlink(missing_ok=True)

    def keep_checkpoints_of(self, stage: str, key: str, force: bool) -> bool:
        """Remove checkpoints made from other inputs; return True if there are others to continue from."""
        folder = self.checkpoints(stage)
        owner = folder / "inputs"
        if force or not owner.is_file() or owner.read_text(encoding="utf-8") != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(owner, key)
        return any(path != owner for path in folder.iterdir())

    def copy(self, source: Path, name: str) -> None:
        """Copy an artefact of another run."""
        if source.is_dir():
            with write_folder(self.file(name)) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            write_text(self.file(name), source.read_text(encoding="utf-8"))

    def record(self, **values: Any) -> None:
        """Write the manifest, with these values of the run itself."""
        self.manifest |= values
        write_json(self.path / "run.json", self.manifest)


def _sweep(path: Path) -> None:
    """Remove what a killed process has left half-written."""
    for leftover in path.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _identity(config: Config) -> dict[str, Any]:
    """Return the entries of `run.json` about the run itself; all others are about a stage."""
    return {
        "task": config.task,
        "backbone": config.backbone,
        "method": config.method.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
    }
