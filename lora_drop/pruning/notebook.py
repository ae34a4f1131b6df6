"""Scores and selections as HTML for notebooks: plain tables with bars, in the colours of the surrounding page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_drop.pruning.scores import Scores
    from lora_drop.pruning.selection import Selection

BAR = "display:inline-block;height:0.7em;background:#4a7fb5;vertical-align:middle;margin-right:0.4em"
KEPT = "display:inline-block;min-width:1.6em;text-align:center;background:#1f4e79;color:#fff"
LOW = "display:inline-block;min-width:1.6em;text-align:center;border-bottom:2px dashed #b8803d"


def scores_html(scores: Scores) -> str:
    """Return a table with a row per layer and a bar per projection."""
    projections = list(dict.fromkeys(row.projection for row in scores.rows))
    layers = sorted({row.layer for row in scores.rows})
    widest = max(row.importance for row in scores.rows)
    found = {(row.projection, row.layer): row.importance for row in scores.rows}
    rows = [
        [str(layer), *(_bar(found.get((projection, layer)), widest) for projection in projections)] for layer in layers
    ]
    seen = f", {scores.examples:,} examples, {scores.tokens:,} tokens" if scores.examples else ""
    caption = f"Importance of {len(scores.rows)} LoRAs by the criterion {escape(scores.criterion)}{seen}"
    return _table(caption, ["layer", *map(escape, projections)], rows)


def selection_html(selection: Selection) -> str:
    """Return a table with a row per projection; retained layers are dark, the others underlined."""
    rest = "share one LoRA" if selection.share else "have no LoRA"
    rows = []
    for name, layers in selection.projections.items():
        kept = set(layers.retained)
        strip = "".join(
            f'<span style="{KEPT if layer in kept else LOW}" title="{"retained" if layer in kept else rest}">{layer}</span>'
            for layer in sorted(layers.all)
        )
        counts = f"{len(layers.retained)} of {len(layers.all)}"
        rows.append([escape(name), counts, f"{layers.coverage:.1%}", strip])
    caption = (
        f"T = {selection.threshold:.3g} ({escape(selection.policy)}): {selection.trainable_parameters:,} parameters; dark "
        f"layers retain their LoRA, the others {rest}"
    )
    return _table(caption, ["projection", "retained", "importance", "layers"], rows)


def _bar(share: float | None, widest: float) -> str:
    if share is None:
        return ""
    return f'<span style="{BAR};width:{10 * share / widest:.2f}em"></span>{share:.1%}'


def _table(caption: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left;white-space:nowrap">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
