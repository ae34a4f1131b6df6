"""Files in the official formats, with a few rows that say little: commands that read them run in seconds."""

import csv
import json
from pathlib import Path

MEALS = ("French", "Italian", "Indian", "English")
AREAS = ("riverside", "city centre")


def write_small_files(folder: Path, train: int = 48, held_out: int = 12) -> None:
    """Write RTE, MRPC, CoLA, E2E and DialogSum into `folder`, as `--data-dir` expects them."""
    for split, count in (("train", train), ("dev", held_out)):
        glue = {name: folder / "glue" / name / f"{split}.tsv" for name in ("RTE", "MRPC", "CoLA")}
        rows = [(n, n % 2, f"Some dogs of farm {n} bark.", f"Dogs {('sleep', 'bark')[n % 2]}.") for n in range(count)]
        labels = ("not_entailment", "entailment")
        _table(glue["RTE"], ["index", "sentence1", "sentence2", "label"], [(n, a, b, labels[y]) for n, y, a, b in rows])
        header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        _table(glue["MRPC"], header, [(y, n, n, a, b) for n, y, a, b in rows])
        sentences = [(y, a if y else " ".join(reversed(a.split()))) for _, y, a, _ in rows]
        _table(glue["CoLA"], None, [("x", y, "", sentence) for y, sentence in sentences])
    meals = [(f"Place {n}", MEALS[n % 4], AREAS[n % 2]) for n in range(train)]
    texts = [(f"name[{a}], food[{b}], area[{c}]", f"{a} serves {b} food at the {c}.") for a, b, c in meals]
    for name, count in (("trainset", train), ("devset", held_out), ("testset_w_refs", held_out)):
        _table(folder / "e2e-dataset" / f"{name}.csv", ["mr", "ref"], texts[:count], delimiter=",")
    for name, count in (("train", train), ("dev", held_out), ("test", held_out)):
        told = [f"#Person1#: Is farm {n} far?\n#Person2#: {'No, it is near. ' * (1 + n % 5)}" for n in range(count)]
        items = [{"fname": str(n), "dialogue": text, "summary": f"Farm {n} is near."} for n, text in enumerate(told)]
        path = folder / "dialogsum" / f"dialogsum.{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def write_e2e_submission(path: Path, folder: Path) -> None:
    """Write outputs for the E2E test file in `folder`, one per meaning, as the challenge wants them: here its references."""
    with (folder / "e2e-dataset" / "testset_w_refs.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    _table(path, ["MR", "output"], rows)


def _table(path: Path, header: list[str] | None, rows: list, delimiter: str = "\t") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([*([header] if header else []), *rows])
