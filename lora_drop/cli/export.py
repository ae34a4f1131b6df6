"""The command `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.cli.options import options
from lora_drop.errors import UserError

FORMS = (
    "peft (an ordinary adapter), compact (each shared LoRA once; lora_drop.load_adapter reads it), merged (the whole "
    "model), config (a LoraConfig), axolotl, llamafactory, trl"
)


@options("as_json", "debug")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=FORMS)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write it; default: RUN/export/FORM, or the terminal for a single text."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Name of the backbone on other machines, if it is a folder here.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Also upload it to this repository of the Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; else it is private.")] = False,
    **given: Any,
) -> None:
    """Write a trained run as an adapter, a whole model, or a configuration for other tools."""
    from lora_drop.export.targets import FOLDERS, check_target, export_folder, export_text

    check_target(to)
    if to not in FOLDERS:
        if push:
            raise UserError(f"--push uploads an adapter or a model, but {to} is a text. Use --to {', '.join(FOLDERS)}.")
        _show_text(export_text(run, to, out, base), to, out, given["as_json"])
        return
    if push:
        from lora_drop.hub.upload import check_upload, upload

        check_upload(push)
    from lora_drop.cli.console import ConsoleReporter, err
    from lora_drop.cli.libraries import quiet_libraries

    url = None
    with ConsoleReporter(err) as reporter:
        quiet_libraries(reporter)
        reporter.doing(f"writing {to}")
        folder, said = export_folder(run, to, out, base)
        if push:
            reporter.doing(f"uploading to {push}")
            url = upload(folder, push, private=not public)
    if given["as_json"]:
        typer.echo(json.dumps({"to": to, "folder": str(folder), "said": said, "url": url}))
        return
    typer.echo(f"Files: {folder} ({said})")
    if url:
        typer.echo(f"Uploaded: {url}")


def _show_text(text: str, to: str, out: Path | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"to": to, "file": str(out) if out else None, "text": text}))
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"File: {out}")
