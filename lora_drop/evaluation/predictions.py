"""Score the output of any system without a model: a text file, JSONL, or the E2E challenge's TSV.

| file | content | order |
|---|---|---|
| text | one prediction per line | as the items of the official file |
| JSONL | objects with `prediction` and optional `id` (as in a run's `predictions.jsonl`) | by `id`, else as the items |
| TSV (task e2e) | `MR<TAB>output`, header and quotes optional | as the items; the MRs are compared |
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from lora_drop.errors import UserError, closest
from lora_drop.tasks.base import Source, Task
from lora_drop.tasks.e2e import meaning_representations
from lora_drop.tasks.files import read_jsonl, read_text
from lora_drop.tasks.own.values import number as finite

_MISREAD = {"Ł": "£", "Â£": "£", "Ã©": "é", "ã©": "é"}
"""Characters garbled by a wrong encoding in some submissions; the challenge's script repairs them, too."""


@dataclass(frozen=True)
class Outputs:
    """One prediction per item.

    `as_written` is True for a system's final texts, which are compared unchanged, and False for a model's raw output.
    """

    predictions: list[Any]
    as_written: bool


def score_predictions(task: Task, path: str | Path, source: Source, split: str | None = None) -> dict[str, Any]:
    """Score a file of predictions and return the content of `metrics.json`.

    Args:
        task: Any task with one label, number or text per row. For classification the file contains label names.
        path: The file; see the module docstring for formats.
        source: Source of the references.
        split: The predicted split; None is the task's first (`test` for E2E, DART and DialogSum).

    Returns:
        `{task, split, examples, metrics: {name: value}, primary, signatures: {name: protocol}}`, and
        `skipped: {name: reason}` if there are metrics that lack a package.

    Raises:
        UserError: For a file that cannot be read, a wrong number of predictions (naming both numbers), or an unknown
            label.
    """
    split = task.check_split(split or task.splits[0])
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The file of predictions {path} does not exist.")
    rows = task.load(source, split)
    outputs = read_outputs(task, path, rows)
    if outputs.predictions and outputs.predictions[-1] == "" and len(outputs.predictions) == len(rows):
        source.report.notice(f"{path}: the last prediction is empty; is one missing?")
    if len(outputs.predictions) != len(rows):
        raise UserError(
            f"{path} holds {len(outputs.predictions)} predictions, but the {split} split of {task.name} has {len(rows)} items. "
            f"One per item is needed, in the order of {task.files.get(split, 'the task')}."
        )
    head = {"task": task.name, "split": split, "examples": len(rows)}
    if task.kind != "generation":
        from lora_drop.evaluation.metrics.classification import evaluate_predictions

        values = [_value(task, path, number, text) for number, text in enumerate(outputs.predictions, 1)]
        groups = list(rows["group"]) if "group" in rows.column_names else None
        return {
            **head,
            "metrics": evaluate_predictions(task, values, list(rows["label"]), groups),
            "primary": task.primary,
            "signatures": {},
        }
    from lora_drop.evaluation.metrics.texts import score_texts

    texts = [str(text).strip() for text in outputs.predictions]
    references, prompts = list(rows["references"]), list(rows["prompt"])
    scores = score_texts(task.metrics, texts, references, as_written=outputs.as_written, prompts=prompts)
    skipped = {"skipped": scores.skipped} if scores.skipped else {}
    return {**head, "metrics": scores.metrics, "primary": task.primary, "signatures": scores.signatures, **skipped}


def read_outputs(task: Task, path: Path, rows: Dataset) -> Outputs:
    """Read a file of predictions in any of the formats. Raises UserError naming file and line."""
    text = read_text(path)
    if path.suffix in (".jsonl", ".ndjson") or _is_json(text):
        return Outputs(_from_jsonl(path, list(rows["id"])), as_written=False)
    if task.name == "e2e" and (
        path.suffix in (".tsv", ".csv") or re.match(r"\s*[\"']?MR[\"']?\s*[\t,]", text, re.IGNORECASE)
    ):
        return Outputs(_from_challenge(path, text, meaning_representations(list(rows["prompt"]))), as_written=True)
    lines = text.split("\n")  # not splitlines: a text may contain U+2028
    if lines[-1] == "" and len(lines) != len(rows):  # the end of the file, not an empty prediction
        lines.pop()
    return Outputs([line.strip() for line in lines], as_written=True)


def _is_json(text: str) -> bool:
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "prediction" in first


def _from_jsonl(path: Path, ids: Sequence[str]) -> list[Any]:
    """Return the predictions ordered by `id`, or in the order of the file if no line has an id.

    Raises UserError for ids that do not match the rows': in file order, a prediction could belong to another row.
    """
    named: dict[str, Any] = {}
    predictions = []
    for line, row in read_jsonl(path):
        if not isinstance(row.get("prediction"), (str, int, float)):
            raise UserError(f"{path}, line {line}: there is no text under 'prediction'")
        predictions.append(row["prediction"])
        name = row.get("id")
        if name is not None and str(name) in named:
            raise UserError(f"{path}, line {line}: a second prediction for {name!r}")
        if name is not None:
            named[str(name)] = row["prediction"]
        if len(named) not in (0, len(predictions)):
            raise UserError(f"{path}, line {line}: some predictions have an id, and others have none")
    if not named:
        return predictions
    if len(named) == len(ids) and set(named) != set(ids):
        strange = next(name for name in named if name not in set(ids))
        raise UserError(
            f"{path}: the id {strange!r} is not an id of the split (such as {ids[0]!r}). Use the split's ids, or "
            "leave all ids out if the predictions are in the order of the official file."
        )
    return [named[name] for name in ids] if set(named) == set(ids) else predictions


def _from_challenge(path: Path, text: str, expected: Sequence[str]) -> list[str]:
    """Return the outputs of a submission, read the same way as by the challenge's script."""
    for wrong, right in _MISREAD.items():
        text = text.replace(wrong, right)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    separator = "\t" if any("\t" in line for _, line in lines) else '","'
    cells = [(number, line.strip("\r\n").split(separator)) for number, line in lines]
    if cells and re.match(r"\s*[\"']?MR\b", cells[0][1][0], re.IGNORECASE):
        cells = cells[1:]
    # otherwise the caller reports both numbers, which is more helpful than the first MR that differs
    complete = len(cells) == len(expected)
    outputs = []
    for position, (number, row) in enumerate(cells):
        if len(row) != 2:
            raise UserError(
                f"{path}, line {number}: {len(row)} cells where MR and output are expected, separated by a tab"
            )
        mr, output = map(_unquote, row)
        if complete and _letters(mr) != _letters(expected[position]):
            raise UserError(
                f"{path}, line {number}: the MR is {mr!r}, but item {position + 1} of the official file is {expected[position]!r}"
            )
        outputs.append(output)
    return outputs


def _unquote(cell: str) -> str:
    """Remove spaces and one quotation mark (single or double) at each end; undouble quotes in a double-quoted cell."""
    bare = re.sub(r"\s*['\"]?\s*$", "", re.sub(r"^\s*['\"]?\s*", "", cell))
    return bare.replace('""', '"') if cell.strip().startswith('"') else bare


def _letters(mr: str) -> str:
    """Return the ASCII letters and digits of an MR, which identify it regardless of quotes, spaces and encoding."""
    return re.sub(r"[^a-z0-9]", "", mr.lower())


def _value(task: Task, path: Path, number: int, prediction: Any) -> float:
    text = str(prediction).strip()
    if task.kind == "classification":
        if text not in task.labels:
            raise UserError(
                f"{path}, prediction {number}: unknown label {text!r}.{closest(text, list(task.labels))} Labels: {', '.join(task.labels)}"
            )
        return task.labels.index(text)
    value = finite(text)
    if value is None:
        raise UserError(f"{path}, prediction {number}: {text!r} is not a number")
    return value
