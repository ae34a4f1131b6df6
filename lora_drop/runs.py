"""The run directory: its artefacts, its manifest, atomic writes, and which stage is already done.

| file | holds |
|---|---|
| `config.yaml` | the resolved configuration |
| `sample.json`, `scores.json`, `selection.json` | stages 1 to 3 |
| `warmup/`, `adapter/` | adapters in PEFT's format; the warm-up with the loss of each step, `losses.json` |
| `checkpoints/` | for resuming; removed when the stage that wrote them is done |
| `metrics.json`, `predictions.jsonl` | stage 5 |
| `run.json` | the manifest: status, what the run is, and per stage what it was made from, computed with, cost and gave |
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from lora_drop.config import Config, config_hash, from_dict, to_yaml
from lora_drop.environment import neutral_environment
from lora_drop.errors import UserError
from lora_drop.progress import SILENT, Reporter

CODE = ("lora_drop", "configs", "pyproject.toml")
FORMAT = 2
"""Of `run.json`. What an older one says of its stages is not taken over: it did not say what each of them was computed with."""
LIBRARIES = ("torch", "transformers", "peft")
PACKAGES = ("lora-drop", "torch", "transformers", "peft", "datasets", "accelerate", "scikit-learn", "numpy")


_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, fsync, rename.

    What UTF-8 cannot hold (half a character, from a path of other bytes) is written as `\\udcff`, which JSON reads back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Remove it and repeat the stage that writes it."
        ) from error


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("r+b") as stream:  # Windows syncs only what may be written
                    os.fsync(stream.fileno())
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def digest(*parts: Any) -> str:
    """Return the sha256 (16 hexadecimal digits) of JSON-like values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 (16 hexadecimal digits) of a file, or of all files of a folder; empty if there is nothing."""
    files = (
        sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.as_posix())
        if path.is_dir()
        else [path]
        if path.is_file()
        else []
    )
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                total.update(block)
    return total.hexdigest()[:16]


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
                    f"{self.path} is not a run directory: it has no config.yaml. Give a configuration with -c or -o key=value."
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
        """Return the path of an artefact that another stage makes. Raises UserError naming that stage if it is missing."""
        path = self.path / name
        if not path.exists():
            raise UserError(f"{path} does not exist. Make it with: lora-drop {stage} --run-dir {self.path}")
        return path

    @contextmanager
    def working(self, report: Reporter = SILENT, store_config: bool = True) -> Iterator[None]:
        """Hold the directory for this process, write the configuration, and record how the work ends.

        Args:
            report: hears which environment variables are ignored meanwhile (`environment.py`).
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
            if store_config:
                write_text(self.file("config.yaml"), to_yaml(self.config))
                self._record(**_identity(self.config))
            self._record(status="running", error=None)
            yield
            self._record(status="done")
        except KeyboardInterrupt:
            self._record(status="interrupted")
            raise
        except BaseException as error:
            self._record(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            lock.release()

    def perform(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        work: Callable[[], tuple[str, dict[str, Any]]],
        force: bool = False,
        report: Reporter = SILENT,
    ) -> None:
        """Do `work` unless its outputs stand and were made from the same inputs; record what it cost.

        `work` writes the outputs and returns a few words about the result, and facts; they are kept in the stage's entry of the manifest.
        Outputs that were altered, or whose inputs have changed since, are made anew.
        """
        key = digest(inputs)
        record = self.manifest["stages"].get(stage, {})
        stands = record.get("inputs") == key and record.get("outputs") == self._digests(outputs)
        if stands and not force:
            report.skip(stage, f"unchanged ({record['note']})")
            others = _other_versions(record["versions"])
            if others:
                report.notice(f"{stage} was done with {others}; what it made stands. To repeat it here: --force")
            return
        report.start(stage)
        resumed = self._keep_checkpoints_of(stage, key, force)
        began = time.perf_counter()
        reset_peak_memory()
        note, facts = work()
        seconds = time.perf_counter() - began
        shutil.rmtree(self.checkpoints(stage), ignore_errors=True)
        self.manifest["stages"][stage] = {
            "inputs": key,
            "outputs": self._digests(outputs),
            "note": note,
            "seconds": round(seconds, 2),
            "peak_memory_mb": peak_memory_mb(),
            "commit": commit(),
            "versions": versions(),
            **facts,
            **({"resumed": True} if resumed else {}),  # then the cost is that of the last process
        }
        self._record()
        report.finish(stage, seconds, note)

    def adopt(self, stage: str, inputs: Mapping[str, Any], outputs: Sequence[str], others: Iterable[Run]) -> bool:
        """Copy a stage from the first of `others` that has done it from the same inputs, unless it is done here; return whether it now is.

        What it cost, and was computed with, stays what it was there; the record says where it was done.
        """
        key = digest(inputs)
        for other in (self, *others):
            entry = other.manifest["stages"].get(stage, {})
            if entry.get("inputs") != key or entry.get("outputs") != other._digests(outputs):
                continue
            if other is not self:
                for name in outputs:
                    self._copy(other.file(name), name)
                self.manifest["stages"][stage] = {"shared_from": other.path.name, **entry}
                self._record()
            return True
        return False

    def checkpoints(self, stage: str) -> Path:
        """Return the folder in which a stage keeps what it needs to continue after a kill."""
        return self.path / "checkpoints" / stage

    def stands(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage was done, and from these inputs."""
        return bool(self.manifest["stages"].get(stage, {}).get("inputs") == digest(inputs))

    def forget(self, stage: str, outputs: Sequence[str]) -> None:
        """Remove what a stage has made, since what it was made from is about to change."""
        if self.manifest["stages"].pop(stage, None):
            self._record()
        for name in outputs:
            self.file(name).unlink(missing_ok=True)

    def _keep_checkpoints_of(self, stage: str, key: str, force: bool) -> bool:
        """Remove checkpoints made from other inputs, which are of no use; return whether there are others to continue from."""
        folder = self.checkpoints(stage)
        owner = folder / "inputs"
        if force or not owner.is_file() or owner.read_text(encoding="utf-8") != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(owner, key)
        return any(path != owner for path in folder.iterdir())

    def _copy(self, source: Path, name: str) -> None:
        if source.is_dir():
            with write_folder(self.file(name)) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            write_text(self.file(name), source.read_text(encoding="utf-8"))

    def _digests(self, outputs: Sequence[str]) -> dict[str, str]:
        return {name: file_digest(self.path / name) for name in outputs}

    def _record(self, **values: Any) -> None:
        self.manifest |= values
        write_json(self.path / "run.json", self.manifest)


def _sweep(path: Path) -> None:
    """Remove what a killed process has left half-written."""
    for leftover in path.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def reset_peak_memory() -> None:
    """Let the peak be counted anew, where the system can do that (a GPU; Linux, by writing 5 to clear_refs)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists() and os.access(_CLEAR_REFS, os.W_OK):
        _CLEAR_REFS.write_text("5", encoding="utf-8")


def peak_memory_mb() -> int:
    """Return the peak memory in MB since `reset_peak_memory`: of the GPU if one is in use, else of the process.

    Where the system cannot count anew, it is the peak since the process started.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    if _STATUS.exists():
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)[0]) // 2**10
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset) // 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def resident_memory_mb() -> int:
    """Return the memory in MB that the process holds now."""
    return int(psutil.Process().memory_info().rss) // 2**20


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of `packages`: those that decide numbers, if none are given."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _other_versions(then: Mapping[str, str]) -> str:
    """Return which of the libraries that compute were of other versions than are installed now."""
    now = versions(LIBRARIES)
    return ", ".join(f"{name} {then[name]} (here: {now[name]})" for name in LIBRARIES if then.get(name) != now[name])


def _identity(config: Config) -> dict[str, Any]:
    """What `run.json` says of the run itself; all else it says of a stage."""
    return {
        "task": config.task,
        "backbone": config.backbone,
        "method": config.method.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
    }


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the commit of the checkout this package runs from, with `+altered` if its code was; None outside a checkout.

    Asked once, when the work begins: what a process has loaded stays what it was when somebody commits meanwhile. Results and runs, which
    the work itself writes, are not code.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8", check=False
        ).stdout.strip()

    found = git("rev-parse", "HEAD")
    return found + "+altered" * bool(git("status", "--porcelain", "--", *CODE)) if found else None
