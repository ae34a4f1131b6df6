"""Tables as LaTeX."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lora_drop.experiments.lines import heads, lines, notes, one_line
from lora_drop.experiments.table import Table

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
)


def to_latex(tables: Sequence[Table]) -> str:
    """Return the tables as `tabular`s that use the package booktabs."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    names = heads(table)
    text = ["% " + one_line(f"{table.title}; {table.backbone}; {json.dumps(table.overrides, sort_keys=True)}")]
    text += [r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}", r"\toprule"]
    text += [" & ".join(map(_escape, names)) + r" \\", r"\midrule"]
    for kind, cells in lines(table, lambda flags: "†" + flags if flags else ""):
        shown = [_escape(cell) for cell in cells]
        if kind != "measured":
            shown = [rf"\textit{{{cell}}}" if cell else "" for cell in shown]
        text.append(" & ".join(shown) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", *(f"% {one_line(note)}" for note in notes(table)), ""])


def _escape(text: str) -> str:
    """Return LaTeX that shows a table's text literally, with the package's own signs as symbols."""
    head, dagger, flags = one_line(text).partition("†")
    return head.translate(_LATEX) + (rf"$^{{\dagger {flags}}}$" if dagger else "")
