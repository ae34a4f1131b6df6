"""The commands for run directories: `runs` lists them, `runs compare` compares two, `runs clean` frees disk space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.cli.options import options
from lora_drop.errors import UserError

WHAT = "Nothing (or DIR): list. compare A B: what differs. clean [DIR]: free disk."


@options("as_json", "debug")
def runs(
    words: Annotated[list[str] | None, typer.Argument(metavar="[DIR] | compare A B | clean [DIR]", help=WHAT)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="clean: remove without asking.")] = False,
    exports: Annotated[
        bool, typer.Option("--exports", help="clean: also what `export` has written into runs.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="clean: also everything that failed or interrupted runs have written.")
    ] = False,
    **given: Any,
) -> None:
    """List runs (task, method, parameters, score, status), compare two (compare A B), or free disk space (clean)."""
    asked = words or []
    if asked[:1] == ["compare"]:
        if len(asked) != 3:
            raise UserError("Name two run directories: lora-drop runs compare A B")
        _compare(Path(asked[1]), Path(asked[2]), given["as_json"])
    elif len(asked) > 1 + (asked[:1] == ["clean"]):
        raise UserError(f"lora-drop runs {' '.join(asked)}: {WHAT}")
    elif asked[:1] == ["clean"]:
        _clean(Path((asked[1:] or ["runs"])[0]), exports, unfinished, yes, given["as_json"])
    else:
        _list(Path((asked or ["runs"])[0]), given["as_json"])


def _list(folder: Path, as_json: bool) -> None:
    from lora_drop.cli.console import note, out, print_rows
    from lora_drop.runs.listing import read_all, row
    from lora_drop.runs.words import duration

    found, damaged = read_all(folder)
    rows = [row(facts, folder) for facts in found]
    if as_json:
        typer.echo(json.dumps([{**each, "path": str(facts.path)} for each, facts in zip(rows, found, strict=True)]))
    else:
        print_rows(out, [{**each, "time": duration(each["time"])} for each in rows])
    for message in damaged:
        note(message)


def _compare(one: Path, other: Path, as_json: bool) -> None:
    from lora_drop.cli.console import out, print_rows
    from lora_drop.runs.facts import read_facts
    from lora_drop.runs.listing import compare

    found = compare(read_facts(one), read_facts(other))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for title, rows in found.items():
        if rows:
            print_rows(out, [{title: each["what"], str(one): each["a"], str(other): each["b"]} for each in rows])
            out.print()
    if not any(found.values()):
        out.print("The runs do not differ.")


def _clean(folder: Path, exports: bool, unfinished: bool, yes: bool, as_json: bool) -> None:
    from lora_drop.cli.console import note, out, print_rows
    from lora_drop.runs.cleaning import clean, removable

    found = removable(folder, exports, unfinished)
    total = sum(each.size for each in found)
    if not as_json:
        rows = [{"what": str(each.path), "why": each.why, "MB": f"{each.size / 1e6:,.1f}"} for each in found]
        print_rows(out, rows)
        out.print(f"{len(found)} to remove, {total / 1e6:,.1f} MB.")
    if found and not yes and not _agreed(as_json):
        out.print("Nothing was removed.")
        return
    for place in clean(found):
        note(f"{place} contains other files, which were not removed")
    if as_json:
        typer.echo(json.dumps({"removed": [str(each.path) for each in found], "bytes": total}))


def _agreed(as_json: bool) -> bool:
    sure = "Nothing was removed: clean asks first, and got no answer. Use --yes to remove without asking."
    if as_json:
        raise UserError(sure)
    try:
        return typer.confirm("Remove them?")
    except typer.Abort as error:
        raise UserError(sure) from error
