"""The forms of an export, by name, and the functions that write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_drop.errors import UserError, closest
from lora_drop.files import write_folder, write_text

FOLDERS = ("peft", "compact", "merged")
"""Forms that are a folder with a model card."""
TEXTS = ("config", "axolotl", "llamafactory", "trl")
"""Forms that are a single text. Each is also the name of its function in `recipes.py`."""


def check_target(name: str) -> None:
    """Raise UserError for a form that does not exist."""
    known = [*FOLDERS, *TEXTS]
    if name not in known:
        raise UserError(f"--to {name}: must be one of {', '.join(known)}.{closest(name, known)}")


def export_folder(run: Path, target: str, folder: Path | None, base: str | None) -> tuple[Path, str]:
    """Write a form that is a folder, atomically.

    Args:
        run: The run directory.
        target: One of FOLDERS.
        folder: A new or empty folder; None is `export/TARGET` in the run, which is replaced.
        base: Name of the backbone on other machines, if it is not known.

    Returns:
        The folder, and its size in words.

    Raises:
        UserError: If the run is not trained or has no such form, its backbone has no name, or the folder is not empty
            or cannot be written.
    """
    from lora_drop.export.adapters import compact, peft
    from lora_drop.export.card import card
    from lora_drop.export.source import ExportedRun

    source = ExportedRun.open(run, base)
    if target != "merged":  # a merged model needs no backbone
        source.base  # noqa: B018 - refuses a backbone without a name before any work
    source.adapter  # noqa: B018 - refuses a run that is not trained
    if folder is not None and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise UserError(f"{folder} is not an empty folder. Remove it, or name another with --out.")
    if folder is not None and folder.resolve() == Path.cwd():
        raise UserError(f"{folder} is the current folder and cannot be replaced. Name another with --out.")
    write: Callable[[ExportedRun, Path], str]
    if target == "merged":
        from lora_drop.export.merged import merged as write
    else:
        write = {"peft": peft, "compact": compact}[target]
    place = folder or source.run.path / "export" / target
    try:
        with write_folder(place) as made:
            said = write(source, made)
            (made / "README.md").write_text(card(source, target, said), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{place} cannot be written ({_reason(error)}). Name another with --out.") from error
    return place, said


def _reason(error: OSError) -> str:
    """Return the reason of an error. `shutil.Error` has a list with the reason of each file; return the first."""
    if error.strerror or not (error.args and isinstance(error.args[0], list)):
        return error.strerror or str(error)
    return str(error.args[0][0][-1])


def export_text(run: Path, target: str, file: Path | None, base: str | None) -> str:
    """Return a form that is a text, and write it to a new `file` if given. Raises UserError like `export_folder`."""
    from lora_drop.export import recipes
    from lora_drop.export.source import ExportedRun

    if file is not None and file.exists():
        raise UserError(f"{file} exists. Remove it, or name another with --out.")
    text: str = getattr(recipes, target)(ExportedRun.open(run, base))
    if file is not None:
        try:
            write_text(file, text)
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror}). Name another with --out.") from error
    return text
