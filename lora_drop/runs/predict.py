"""Predictions of a trained run for new rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from lora_drop.config.schema import Config
from lora_drop.data.sentences import collator
from lora_drop.errors import UserError, counted
from lora_drop.evaluation.classifier import chosen_labels
from lora_drop.evaluation.classifier import predict as classify
from lora_drop.evaluation.generator import generate
from lora_drop.evaluation.kinds import get_kind
from lora_drop.evaluation.perplexity import NAME as PERPLEXITY
from lora_drop.progress import SILENT, Reporter
from lora_drop.runs.facts import read_facts
from lora_drop.runs.load import load_run, trained_task
from lora_drop.runs.prediction_file import FORMATS, check_target, make_room, writing
from lora_drop.runs.store import Run
from lora_drop.tasks.base import Source, Task
from lora_drop.tasks.own.chats import asked_and_answered
from lora_drop.tasks.own.reading import Reading, some_places
from lora_drop.tasks.own.splits import local_files, open_split
from lora_drop.tasks.own.tables import Placed, Table
from lora_drop.tasks.own.values import Label, as_text, number, several
from lora_drop.training.way import Way, find_way, why_slow

NOTHING_ASKED = [{"role": "user", "content": ""}]
"""The turns of a blank conversation: chat templates refuse one without turns."""
AT_A_TIME = 4096
"""Rows held in memory at a time."""
Pair = tuple[Any, Label | None]
"""A row's prediction and its label."""


@dataclass(frozen=True)
class Predicted:
    """The file of predictions, their number, and their metrics if the rows have labels."""

    path: Path
    rows: int
    compared: int
    """Rows with text and a label that the model knows."""
    metrics: dict[str, float]


class Predictor:
    """A trained run on own data, loaded for prediction."""

    def __init__(self, run_dir: str | Path, device: str, report: Reporter = SILENT):
        """Load model and tokenizer. Raises UserError if the run is not on own data, and as `load_run` does."""
        self.run = Run(run_dir)
        if not self.run.config.data.given:
            raise UserError(
                f"{run_dir} was trained on the task {self.run.config.task}; `predict` is for your own data (lora-drop "
                "run --data FILE). To evaluate this run: lora-drop eval"
            )
        self.config: Config = self.run.config
        self.task: Task = trained_task(self.run)
        self.reading: Reading = Reading.of_record(self.task.record)
        self.model, self.tokenizer = load_run(run_dir, device)
        self.report = report
        self.way: Way | None = None
        """The way to compute the model; found with the first rows."""

    def check(self, table: Table) -> None:
        """Raise UserError if a table lacks a column that the run reads."""
        for name in self.reading.columns:
            table.column(name, f"the text of the run {self.run.path}")

    def predict(self, rows: Sequence[Placed]) -> list[dict[str, Any]]:
        """Return for each row its `prediction` and, for labels, the probabilities `score` and `scores`."""
        self.report.doing(f"tokenising {len(rows):,} rows")
        encoded, notices = get_kind(self.task).encode_evaluation(
            self._asked(rows), self.tokenizer, self.config, "new rows:"
        )
        for notice in notices:
            self.report.notice(notice)
        collate, size = collator(self.tokenizer), self.config.eval.batch_size
        writes = self.task.kind == "generation"
        if self.way is None:
            slow = why_slow(next(self.model.parameters()).device, self.config.train.precision)
            if slow:
                self.report.notice(f"the run was trained in {self.config.train.precision}: {slow}")
            self.way = find_way(self.model, None if writes else encoded, collate, self.config.train, learns=False)
        if not writes:
            return self._named(classify(self.model, encoded, collate, size, self.way, self._progress))
        with self.way.over():
            written = generate(
                self.model, encoded, self.tokenizer, self.config.generation, size, progress=self._progress
            )
        return [{"prediction": text.strip()} for text in written]

    def _progress(self, done: int, total: int) -> None:
        self.report.advance(done, total, "rows")

    def _asked(self, rows: Sequence[Placed]) -> Dataset:
        """Return rows in the form that the task expects, without labels."""
        for place, row in rows:
            self.reading.check_cells(place, row)
        if self.reading.chat is not None:
            turns = [asked_and_answered(self.reading.conversation(place, row))[0] for place, row in rows]
            return Dataset.from_dict({"asked": [json.dumps(asked or NOTHING_ASKED) for asked in turns]})
        texts = [self.reading.text(row) for _, row in rows]
        if self.task.kind == "generation":
            return Dataset.from_dict({"prompt": [text[0] for text in texts]})
        pair = {"text_pair": [text[1] for text in texts]} if len(self.reading.texts) == 2 else {}
        return Dataset.from_dict({"text": [text[0] for text in texts], **pair, "label": self._no_labels(len(rows))})

    def _no_labels(self, count: int) -> list[Any]:
        return [[0.0] * len(self.task.labels) if self.task.kind == "multilabel" else 0.0] * count

    def _named(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        if self.task.kind == "regression":
            return [{"prediction": self.task.number(value)} for value in logits.squeeze(-1).tolist()]
        several_hold = self.task.kind == "multilabel"
        probabilities = logits.sigmoid() if several_hold else logits.softmax(dim=-1)
        chosen = chosen_labels(logits).tolist()
        rows = []
        for scores, held in zip(probabilities.tolist(), chosen, strict=True):
            named = dict(zip(self.task.labels, scores, strict=True))
            best = max(named, key=lambda name: named[name])
            names = [name for name, on in zip(self.task.labels, held, strict=True) if on]
            rows.append({"prediction": names if several_hold else best, "score": named[best], "scores": named})
        return rows


def predict(
    run_dir: str | Path,
    data: str,
    to: Path | None,
    source: Source,
    report: Reporter,
    device: str = "auto",
    split: str = "test",
) -> Predicted:
    """Write a trained run's predictions for new rows.

    Args:
        run_dir: the run.
        data: a file, a folder, or a data set of the Hub, with the columns that the run read as text.
        to: a csv, tsv or jsonl file. None: `predictions-NAME` in the run directory, in the format of the data if it is
            one of these, else csv.
        source: says if the Hub may be asked.
        report: receives progress.
        device: auto, cpu, cuda or mps.
        split: the split to read from a folder or the Hub.

    Raises:
        UserError: for rows that cannot be read, a run that was not trained, or an unknown format.
    """
    given = Path(data)
    to = to or Path(run_dir) / f"predictions-{given.stem}{given.suffix if given.suffix in FORMATS else '.csv'}"
    check_target(to, local_files(data, split))
    table = open_split(data, split, source)
    report.doing("loading the model")
    predictor = Predictor(run_dir, device, report)
    predictor.check(table)
    facts = read_facts(run_dir)
    if not (facts.trained_as_selected and facts.trained_as_configured):
        report.notice("the run was changed after its training; the predictions are from the model as it was trained")
    make_room(to)
    labelled = bool(predictor.reading.chat) or predictor.reading.label in table.columns
    began = time.perf_counter()
    report.start("predict")
    count, pairs, blank = _written(predictor, table, to)
    if blank:
        report.notice(f"{some_places(blank, 'no text')}: their predictions are meaningless")
    report.finish("predict", time.perf_counter() - began, counted(count, "row"))
    compared, metrics = _metrics(predictor, pairs, report) if labelled else (0, {})
    return Predicted(to, count, compared, metrics)


def _written(predictor: Predictor, table: Table, to: Path) -> tuple[int, list[Pair], list[str]]:
    """Write the predictions for a table.

    Returns:
        The number of rows, the predictions and labels of rows with text, and the places of rows without.
    """
    pairs: list[Pair] = []
    blank: list[str] = []
    with writing(to, table.columns, predictor.reading.labels) as writer:
        for rows in _chunks(table.rows()):
            found = predictor.predict(rows)
            for (place, row), each in zip(rows, found, strict=True):
                writer.write(row, each)
                if predictor.reading.empty(row):  # an evaluation leaves such rows out, too
                    blank.append(place)
                else:
                    pairs.append((each["prediction"], predictor.reading.answer(place, row)))
            predictor.report.doing(f"{counted(len(pairs) + len(blank), 'row')} predicted")
    return len(pairs) + len(blank), pairs, blank


def _chunks(rows: Iterable[Placed]) -> Iterator[list[Placed]]:
    rows = iter(rows)
    while chunk := list(islice(rows, AT_A_TIME)):
        yield chunk


def _metrics(predictor: Predictor, rows: Sequence[Pair], report: Reporter) -> tuple[int, dict[str, float]]:
    """Return the number of rows with a label that the model knows, and the task's metrics over them."""
    task, reading = predictor.task, predictor.reading

    def known(label: Label | None) -> bool:
        if reading.kind == "multilabel":
            return set(several(label)) <= set(reading.labels)
        if reading.kind == "regression":
            return number(label) is not None
        return label is not None and (reading.kind == "generation" or label in reading.labels)

    pairs = [(given, label) for given, label in rows if known(label)]
    if len(pairs) < len(rows) and any(label is not None for _, label in rows):
        left = counted(len(rows) - len(pairs), "row")
        report.notice(f"{left} of {len(rows):,} without a label that the model knows, not compared")
    return len(pairs), _compared(task, reading, pairs) if pairs else {}


def _compared(task: Task, reading: Reading, pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    if task.kind == "generation":
        from lora_drop.evaluation.metrics.texts import score_texts

        texts, answers = [given for given, _ in pairs], [[as_text(label)] for _, label in pairs]
        names = [name for name in task.metrics if name != PERPLEXITY]
        return score_texts(names, texts, answers).metrics if names else {}
    if task.kind == "multilabel":
        from lora_drop.evaluation.metrics.several import evaluate_several

        def row(names: Iterable[str]) -> list[int]:
            return [int(name in names) for name in reading.labels]

        given, actual = [row(names) for names, _ in pairs], [row(several(label)) for _, label in pairs]
        return evaluate_several(task.metrics, given, actual)
    from lora_drop.evaluation.metrics.classification import evaluate_predictions

    value = reading.labels.index if task.kind == "classification" else float
    return evaluate_predictions(task, [value(given) for given, _ in pairs], [value(label) for _, label in pairs])
