"""The benchmarks as their official files hold them and as the Hub does, written from the same items: the Hub's copies for a HubServer."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet


@dataclass(frozen=True)
class Glue:
    """Columns of one GLUE task: those of its files, and in the same order those of the Hub."""

    folder: str
    columns: tuple[str, ...]
    hub: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """Label texts of the files in the Hub's order; none: a score."""


ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "cola": Glue("CoLA", ("3", "1"), ("sentence", "label"), ("0", "1")),
    "sst2": Glue("SST-2", ("sentence", "label"), ("sentence", "label"), ("0", "1")),
    "mrpc": Glue("MRPC", ("#1 String", "#2 String", "Quality"), ("sentence1", "sentence2", "label"), ("0", "1")),
    "qqp": Glue("QQP", ("question1", "question2", "is_duplicate"), ("question1", "question2", "label"), ("0", "1")),
    "stsb": Glue("STS-B", ("sentence1", "sentence2", "score"), ("sentence1", "sentence2", "label")),
    "mnli": Glue(
        "MNLI",
        ("sentence1", "sentence2", "gold_label"),
        ("premise", "hypothesis", "label"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": Glue("QNLI", ("question", "sentence", "label"), ("question", "sentence", "label"), ENTAILMENT),
    "rte": Glue("RTE", ("sentence1", "sentence2", "label"), ("sentence1", "sentence2", "label"), ENTAILMENT),
}
MNLI_PARTS = {"train": "train", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"}
PARTS = {"train": "train", "validation": "dev"}
NLG = {
    "e2e": {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"},
    "dart": {split: f"dart-v1.1.1-full-{name}.json" for split, name in {**PARTS, "test": "test"}.items()},
    "dialogsum": {split: f"dialogsum.{name}.jsonl" for split, name in {**PARTS, "test": "test"}.items()},
}
FOLDERS = {"e2e": "e2e-dataset", "dart": "dart", "dialogsum": "dialogsum"}
TEXTS = ('He said "no', "naïve 😀 text", " a blank before", "NA", "it 's so , isn't it ?", "a\u2028b")
SCORES = ("3.800", "0.583", "2.11111111111111", "5.0", "4.57142857142857", "0.200000")


def parts(task: str) -> dict[str, str]:
    """Return the official file of each split, relative to a data folder."""
    if task in NLG:
        return {split: f"{FOLDERS[task]}/{name}" for split, name in NLG[task].items()}
    return {
        split: f"glue/{GLUE[task].folder}/{name}.tsv"
        for split, name in (MNLI_PARTS if task == "mnli" else PARTS).items()
    }


def write_official(folder: Path) -> None:
    """Write small official files of all tasks."""
    for task in (*GLUE, *NLG):
        for number, (split, name) in enumerate(parts(task).items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((_glue_file(task, number) if task in GLUE else _NLG_FILES[task](split)).encode())


def _glue_file(task: str, number: int) -> str:
    layout = GLUE[task]
    texts = [TEXTS[number:] + TEXTS[:number], TEXTS[::-1]][: len(layout.columns) - 1]
    labels = [layout.labels[row % len(layout.labels)] for row in range(len(TEXTS))] if layout.labels else SCORES
    rows = list(zip(*texts, labels, strict=True))
    if task == "cola":
        return "".join(f"source\t{label}\t\t{text}\n" for text, label in rows)
    lines = ["\t".join(("index", *layout.columns)), *(f"{index}\t" + "\t".join(row) for index, row in enumerate(rows))]
    return ("\ufeff" if task == "mrpc" else "") + "\n".join(lines) + "\n"


def _e2e_file(split: str) -> str:
    rows = [
        (f"name[{name}], food[{food}]", f'{name} has "{food}",\nof course')
        for name, food in (("A", "x"), ("B", "y"), ("A", "x"))
    ]
    return "mr,ref\r\n" + "".join(f'"{mr}","{text.replace(chr(34), chr(34) * 2)} {split}"\r\n' for mr, text in rows)


def _dart_file(split: str) -> str:
    items = [
        {
            "tripleset": [["A", "is", text]],
            "subtree_was_extended": False,
            "annotations": [{"source": f"source {n}", "text": f"{text} {n}"} for n in range(count)],
        }
        for text, count in zip(TEXTS, (1, 2, 3, 1, 2, 1), strict=True)
    ]
    return json.dumps(items, indent=2).replace("\n", "\r\n")


def _dialogsum_file(split: str) -> str:
    keys = ("summary1", "summary2", "summary3") if split == "test" else ("summary",)
    rows = [
        {"fname": f"{split}_{n}", "dialogue": f"#A#: {text}\r\n#B#: Yes, no.", **{key: f"{key} {text}" for key in keys}}
        for n, text in enumerate(TEXTS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


_NLG_FILES = {"e2e": _e2e_file, "dart": _dart_file, "dialogsum": _dialogsum_file}


def write_hub(root: Path, official: Path, tasks: Sequence[str] = (*GLUE, *NLG)) -> None:
    """Write the Hub's copies of the official files that there are, as the Hub holds them, into the folder that a HubServer serves."""
    glue, settings = root / "datasets" / "nyu-mll" / "glue", []
    for task in (task for task in GLUE if task in tasks):
        splits = {split: official / name for split, name in parts(task).items() if (official / name).is_file()}
        for split, path in splits.items():
            write_parquet(glue / task / f"{split}-00000-of-00001.parquet", _glue_rows(task, path))
        files = "".join(f"  - split: {split}\n    path: {task}/{split}-*\n" for split in splits)
        settings.append(f"- config_name: {task}\n  data_files:\n{files}")
    (glue / "README.md").write_text(f"---\nconfigs:\n{''.join(settings)}---\n# GLUE\n")
    for task, rows in ((task, rows) for task, rows in (("e2e", _e2e_rows), ("dart", _dart_rows)) if task in tasks):
        repository = {"e2e": "tuetschek/e2e_nlg", "dart": "GEM/dart"}[task]
        script = root / "datasets" / repository
        script.mkdir(parents=True)
        (script / f"{script.name}.py").write_text("raise SystemExit('a loading script was executed')\n")
        for split, name in parts(task).items():
            if (official / name).is_file():
                branch = script.with_name(f"{script.name}@refs%2Fconvert%2Fparquet")
                write_parquet(branch / "default" / split / "0000.parquet", rows(official / name, split))
    if "dialogsum" in tasks:
        _write_dialogsum(root / "datasets" / "knkarthick" / "dialogsum", official)


def write_parquet(path: Path, table: pyarrow.Table) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def _glue_rows(task: str, path: Path) -> pyarrow.Table:
    layout = GLUE[task]
    lines = [line.removesuffix("\r").split("\t") for line in path.read_text("utf-8-sig").removesuffix("\n").split("\n")]
    header = [str(number) for number in range(4)] if task == "cola" else lines.pop(0)
    rows = [line for line in lines if len(line) == len(header)]  # three lines of QQP are short
    columns = [[row[header.index(name)] for row in rows] for name in layout.columns]
    if layout.labels:
        labels = pyarrow.array([layout.labels.index(text) for text in columns[-1]], pyarrow.int64())
    else:
        labels = pyarrow.array([float(text) for text in columns[-1]], pyarrow.float32())
    index = pyarrow.array(range(len(rows)), pyarrow.int32())
    return pyarrow.table(dict(zip(layout.hub, [*columns[:-1], labels], strict=True)) | {"idx": index})


def _e2e_rows(path: Path, split: str) -> pyarrow.Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {key.lower(): key for key in rows[0]}
    columns = {"meaning_representation": "mr", "human_reference": "ref"}
    return pyarrow.table({hub: [row[names[key]] for row in rows] for hub, key in columns.items()})


def _dart_rows(path: Path, split: str) -> pyarrow.Table:
    rows = []
    for item in json.loads(path.read_text("utf-8-sig")):
        texts, sources = zip(*((each["text"], each["source"]) for each in item["annotations"]), strict=True)
        common = {"tripleset": item["tripleset"], "subtree_was_extended": bool(item.get("subtree_was_extended"))}
        if split == "train":  # there, every annotation is a row of its own
            rows += [
                {**common, "target_sources": [source], "target": text, "references": []}
                for text, source in zip(texts, sources, strict=True)
            ]
        else:
            rows.append({**common, "target_sources": list(sources), "target": texts[0], "references": list(texts)})
    strings = pyarrow.list_(pyarrow.string())
    types = [
        ("tripleset", pyarrow.list_(strings)),
        ("subtree_was_extended", pyarrow.bool_()),
        ("target_sources", strings),
    ]
    return pyarrow.Table.from_pylist(
        rows, pyarrow.schema([*types, ("target", pyarrow.string()), ("references", strings)])
    )


def _write_dialogsum(folder: Path, official: Path) -> None:
    folder.mkdir(parents=True)
    for split, name in parts("dialogsum").items():
        rows = [json.loads(line) for line in (official / name).read_text("utf-8").split("\n") if line]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "dialogue", "summary", "topic"))
            for number, row in enumerate(rows):
                for key in [key for key in row if key.startswith("summary")]:
                    which = key.removeprefix("summary")
                    label = f"{split}_{number}" + (f"_{which}" if which else "")
                    writer.writerow((label, row["dialogue"].replace("\r\n", "\n"), row[key], "talk"))
