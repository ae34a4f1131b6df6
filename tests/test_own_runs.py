"""Runs on own data through the command line: from a file to an adapter with named labels, and predictions of new rows."""

import csv
import datetime
import json
import re
import shlex
import shutil
from decimal import Decimal
from pathlib import Path

import own_data
import pytest
import torch
from transformers import AutoModel

from lora_drop import load_run
from lora_drop.cli.app import main
from lora_drop.config.loading import load_config
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.experiments.results import Results
from lora_drop.files import read_json
from lora_drop.models.backbones import load_config as load_config_of
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.registry import TASKS
from lora_drop.runs.load import trained_task
from lora_drop.runs.predict import Predictor
from lora_drop.runs.store import Run

pytestmark = pytest.mark.slow
TINY = ["-b", "tiny:bert", "-o", "train.epochs=1", "-o", "warmup.epochs=1", "-o", "train.learning_rate=5e-3", "--quiet"]


def lora_drop(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def read_csv(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_csv_to_predictions_of_new_rows(folder, capsys):
    own_data.write(folder / "reviews.csv", own_data.reviews(120))
    assert lora_drop("run", "--data", "reviews.csv", "--text", "review", "--label", "stars", *TINY, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]
    assert result["n"] == 24 and result.keys() >= {"accuracy", "f1_macro", "matthews_correlation"}
    run = folder / "runs" / "reviews"
    config = json.loads((run / "adapter" / "config.json").read_text())
    assert config["id2label"] == {str(index): str(index + 1) for index in range(5)}
    assert json.loads((run / "predictions.jsonl").read_text().splitlines()[0])["reference"] in "12345"
    before = (run / "run.json").read_text()
    assert lora_drop("run", "-d", run, "--quiet") == 0  # the directory knows its data
    entries = [json.loads(text)["stages"]["train"]["inputs"] for text in (before, (run / "run.json").read_text())]
    assert entries[0] == entries[1]

    (folder / "reviews.csv").unlink()  # predictions need none of it
    formula = {**own_data.reviews(1, seed=2)[0], "review": "=1+1"}
    fresh = own_data.write(folder / "new.csv", [*own_data.reviews(30, seed=1), formula])
    capsys.readouterr()
    assert lora_drop("predict", run, "--data", fresh, "--json", "--quiet") == 0
    summary = json.loads(capsys.readouterr().out)
    *rows, last = read_csv(run / "predictions-new.csv")
    assert last["review"] == "'=1+1"  # which no spreadsheet computes
    assert [row["review"] for row in rows] == [row["review"] for row in own_data.reviews(30, seed=1)]
    right = sum(row["prediction"] == row["stars"] for row in [*rows, last]) / 31
    assert Predictor(run, "cpu").predict([("", row) for row in own_data.reviews(3)])[0].keys() == {
        "prediction",
        "score",
        "scores",
    }
    assert summary["rows"] == 31 and summary["accuracy"] == pytest.approx(right)
    for row in rows:
        scores = {name: float(row[f"P({name})"]) for name in "12345"}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-4)
        assert scores[row["prediction"]] == float(row["score"]) == max(scores.values())
    model, _ = load_run(run, "cpu")
    assert model.config.id2label[0] == "1"


def test_predictions_of_evaluation_rows_are_those_of_the_run(folder):
    own_data.write(folder / "reviews.jsonl", own_data.reviews(100))
    own_data.write(folder / "dev.jsonl", own_data.reviews(20, seed=1))
    data = ["--data", "reviews.jsonl", "--label", "stars", "--validation", "dev.jsonl"]
    assert lora_drop("run", "-d", "run", *data, *TINY) == 0
    assert lora_drop("predict", "run", "--data", "dev.jsonl", "--to", "out.jsonl", "-q") == 0
    of_run = [json.loads(line)["prediction"] for line in Path("run/predictions.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in found] == of_run
    assert list(found[0]) == [*own_data.reviews(1)[0], "prediction", "score", "scores"]


def test_predictions_are_compared_with_whole_numbers_however_they_are_written(folder, capsys):
    reviews = own_data.reviews(60)
    own_data.write(folder / "r.csv", [{"review": row["review"], "stars": f"{row['stars']}.0"} for row in reviews])
    assert lora_drop("run", "--data", "r.csv", *TINY) == 0
    own_data.write(folder / "new.csv", [{"review": row["review"], "stars": row["stars"]} for row in reviews])
    summaries = []
    for name in ("r.csv", "new.csv"):
        capsys.readouterr()
        assert lora_drop("predict", "runs/r", "--data", name, "--to", "out.csv", "--json") == 0
        summaries.append(json.loads(capsys.readouterr().out))
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]  # of all rows


def test_several_labels_a_row_are_learnt_with_a_decision_for_each(folder):
    own_data.write(folder / "r.csv", own_data.reviews(100))
    assert lora_drop("run", "-d", "run", "--data", "r.csv", "--label", "aspects", *TINY) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["primary"] == "f1_micro" and metrics["baseline"].keys() == metrics["metrics"].keys()
    rows = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    held = sum(len(set(row["prediction"]) & set(row["reference"])) for row in rows)
    total = sum(len(row["prediction"]) + len(row["reference"]) for row in rows)
    assert metrics["metrics"]["f1_micro"] == pytest.approx(2 * held / total)
    config = json.loads(Path("run/adapter/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert lora_drop("predict", "run", "--data", "r.csv", "-q") == 0
    for row in read_csv(Path("run/predictions-r.csv")):
        scores = {name: float(row[f"P({name})"]) for name in own_data.ASPECTS}
        assert row["prediction"] == ";".join(name for name, score in sorted(scores.items()) if score > 0.5)


def test_what_was_trained_on_is_not_evaluated(folder, capsys):
    """The rows to evaluate on are a share of a file: of another file, or another share, some were trained on."""
    reviews = own_data.reviews(100)
    own_data.write(folder / "r.csv", reviews)
    assert lora_drop("run", "-d", "run", "--data", "r.csv", "--label", "stars", *TINY) == 0
    before = Path("run/metrics.json").read_text()
    assert lora_drop("eval", "-d", "run", "-q", "-o", "data.validation=0.5") == 2
    assert "some of the rows to evaluate were trained on" in " ".join(capsys.readouterr().err.split())
    own_data.write(folder / "r.csv", [*own_data.reviews(30, seed=1), *reviews])
    assert lora_drop("eval", "-d", "run", "-q") == 2
    assert "--validation FILE" in capsys.readouterr().err and Path("run/metrics.json").read_text() == before
    own_data.write(folder / "new.csv", own_data.reviews(30, seed=2))
    assert lora_drop("eval", "-d", "run", "-q", "-o", "data.validation=new.csv") == 0
    assert json.loads(Path("run/metrics.json").read_text())["examples"] == 30


def test_numbers_are_evaluated_in_the_unit_of_the_training(folder, capsys):
    own_data.write(folder / "r.csv", own_data.reviews(60))
    own_data.write(folder / "new.csv", own_data.reviews(20, seed=2))
    data = ["--data", "r.csv", "--label", "delight", "-o", "data.validation=new.csv"]
    assert lora_drop("run", "-d", "run", *data, *TINY) == 0
    own_data.write(folder / "r.csv", [{**row, "delight": 100 * row["delight"]} for row in own_data.reviews(60)])
    capsys.readouterr()
    assert lora_drop("eval", "-d", "run", "-q") == 2
    assert "was trained on numbers around" in " ".join(capsys.readouterr().err.split())


def test_numbers_and_pairs(folder, capsys):
    own_data.write(folder / "r.parquet", own_data.reviews(100))
    assert lora_drop("run", "-d", "run", "--data", "r.parquet", "--label", "delight", *TINY) == 0
    assert json.loads(Path("run/metrics.json").read_text())["primary"] == "spearman"
    assert lora_drop("predict", "run", "--data", "r.parquet", "-q") == 0
    predicted = read_csv(Path("run/predictions-r.csv"))
    assert list(predicted[0]) == [*own_data.reviews(1)[0], "prediction"]
    delight = [row["delight"] for row in own_data.reviews(100)]
    assert [float(row["delight"]) for row in predicted] == delight
    assert min(delight) < sum(float(row["prediction"]) for row in predicted) / 100 < max(delight)
    references = [json.loads(line)["reference"] for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert set(references) <= set(delight)
    assert lora_drop("predict", "run", "--data", "r.parquet", "--to", "r.parquet") == 2
    own_data.write(folder / "p.tsv", own_data.pairs(100))
    lora = ["-o", "method.name=lora", "--metric", "f1_macro", "--metric", "accuracy"]
    assert lora_drop("run", "-d", "pairs", "--data", "p.tsv", *lora, *TINY) == 0
    assert json.loads(Path("pairs/metrics.json").read_text())["primary"] == "f1_macro"
    assert lora_drop("predict", "pairs", "--data", "p.tsv", "-q") == 0
    assert Path("pairs/predictions-p.tsv").read_text().splitlines()[0].split("\t")[-4:-2] == ["prediction", "score"]
    capsys.readouterr()
    own_data.write(folder / "other.csv", own_data.reviews(3))
    assert lora_drop("predict", "pairs", "--data", "other.csv", "-q") == 2
    assert "no column 'sentence1'" in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the stars of sixty reviews, and the reviews."""
    place = tmp_path_factory.mktemp("trained")
    data = own_data.write(place / "r.csv", own_data.reviews(60))
    assert lora_drop("run", "-d", place / "run", "--data", data, "--label", "stars", *TINY) == 0
    return place / "run", data


def test_what_a_spreadsheet_would_compute_is_escaped_and_blank_texts_are_told(trained, folder, capsys):
    run, _ = trained
    texts = ["=HYPERLINK(1)", "+49 30", "-1 star", "@me", "\t=1", "-0.5", "fine = good", " "]
    own_data.write(folder / "new.csv", [{"review": text, "stars": 3} for text in texts])
    assert lora_drop("predict", run, "--data", "new.csv") == 0
    assert "1 row has no text (new.csv, line 9): their predictions" in capsys.readouterr().err
    shown = [row["review"] for row in read_csv(run / "predictions-new.csv")]
    assert shown == ["'=HYPERLINK(1)", "+49 30", "'-1 star", "'@me", "'\t=1", "-0.5", "fine = good", " "]
    assert lora_drop("predict", run, "--data", "new.csv", "--to", "new.jsonl", "-q") == 0
    assert [json.loads(line)["review"] for line in Path("new.jsonl").read_text().splitlines()] == texts


def test_rows_without_text_are_predicted_and_not_compared(trained, folder, capsys):
    reviews = own_data.reviews(12, seed=3)
    found = {}
    for name, texts in (("whole", []), ("gaps", ["", " "] * 12)):
        blank = [{"review": text, "stars": 1 + number % 5} for number, text in enumerate(texts)]
        rows = [{"review": row["review"], "stars": row["stars"]} for row in reviews]
        own_data.write(folder / f"{name}.csv", rows + blank)
        assert lora_drop("predict", trained[0], "--data", f"{name}.csv", "--to", "out.csv", "--json") == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert (found["gaps"].pop("rows"), found["gaps"].pop("compared")) == (36, found["whole"].pop("rows"))
    assert found["gaps"] == pytest.approx(found["whole"])


def test_new_rows_are_computed_as_evaluation_rows_are(trained):
    predictor, rows = Predictor(trained[0], "cpu"), [("", row) for row in own_data.reviews(40, seed=2)]
    fast = predictor.predict(rows)
    assert predictor.way is not None and predictor.way.packing is not None
    stock = Predictor(trained[0], "cpu")
    stock.config = load_config([], ["train.packing=never", "train.products=stock"])
    assert stock.predict(rows)[7]["scores"] == pytest.approx(fast[7]["scores"], rel=1e-4)
    assert stock.way.packing is None


def test_a_model_that_has_diverged_predicts_nothing(trained):
    predictor = Predictor(trained[0], "cpu")
    with torch.no_grad():
        for name, parameter in predictor.model.named_parameters():
            parameter.fill_(torch.nan) if "lora_B" in name else None
    with pytest.raises(UserError, match="predicts NaN: its training diverged"):
        predictor.predict([("", row) for row in own_data.reviews(4, seed=2)])


def test_numbers_are_exported_with_the_scale_of_the_output(folder, capsys):
    own_data.write(folder / "r.csv", own_data.reviews(60))
    run = ["run", "-d", "run", "--data", "r.csv", "--label", "delight", "-o", "method.threshold=0.5", *TINY]
    assert lora_drop(*run) == 0
    task = read_json(folder / "run" / "adapter" / "task.json")
    scale = {"center": task["center"], "spread": task["spread"]}
    for form in ("peft", "merged"):
        capsys.readouterr()
        assert lora_drop("export", "run", "--to", form, "--out", form, "--json") == 0
        assert json.loads(capsys.readouterr().out)["to"] == form
        assert read_json(folder / form / "config.json")["lora_drop"] == scale
        assert f"output × {task['spread']:.10g} + {task['center']:.10g}" in (folder / form / "README.md").read_text()


def test_an_adapter_trained_elsewhere_is_scored_on_own_data(trained, folder):
    run, data = trained
    of_data = ["--data", data, "--text", "review", "--label", "stars"]
    assert lora_drop("score", "-d", "elsewhere", "--adapter", run / "adapter", *of_data, "-q") == 0
    scores = read_json(folder / "elsewhere" / "scores.json")
    assert scores["task"] == "own" and scores["examples"] == 12 and len(scores["modules"]) == 8
    assert lora_drop("select", "-d", "elsewhere", "--budget", "0.5", "-q") == 0
    assert not (folder / "elsewhere" / "adapter").exists()


GRID = """
title: Budgets on reviews
backbone: tiny:bert
tasks: [own]
seeds: [0]
set:
  data.path: r.csv
  data.label: stars
  train.epochs: 1
  warmup.epochs: 1
rows:
  half: {title: LoRA-drop, method.name: lora_drop, method.budget: 0.5}
"""


def test_a_grid_over_own_data(folder, capsys):
    own_data.write(folder / "r.csv", own_data.reviews(60))
    (folder / "grid.yaml").write_text(GRID)
    command = ["reproduce", "grid.yaml", "--runs", "runs", "--results", "results", "--quiet", "--json"]
    assert lora_drop(*command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["performed"] == 1 and not said["failed"]
    table = (folder / "results" / "grid" / "tiny-bert" / "table.md").read_text()
    assert "own data" in table and "LoRA-drop" in table
    planned, results = expand(load_experiment("grid.yaml"), Choice()), Results(folder / "results")
    assert [results.has(run) for run in planned] == [True]
    lines = (folder / "r.csv").read_bytes()
    (folder / "r.csv").write_bytes(lines.replace(b"\n", b"\r\n"))  # the same rows, which is found out once
    trained = (folder / "results").rglob("*.json")
    before = [read_json(path)["stages"]["train"]["seconds"] for path in trained]
    for has in (False, True):
        assert [results.has(run) for run in planned] == [has]
        assert lora_drop(*command) == 0
    assert [read_json(path)["stages"]["train"]["seconds"] for path in (folder / "results").rglob("*.json")] == before
    own_data.write(folder / "r.csv", own_data.reviews(64))  # other rows are another result
    assert [results.has(run) for run in planned] == [False]
    (folder / "grid.yaml").write_text(GRID.replace("  data.path: r.csv\n", ""))
    assert lora_drop(*command) == 2
    assert "name the file with set: {data.path: FILE}" in " ".join(capsys.readouterr().err.split())


def test_a_result_is_that_of_every_file_that_it_was_made_from(folder, capsys):
    backbone = locate("tiny:bert")
    own_data.write(folder / "r.csv", own_data.reviews(60))
    own_data.write(folder / "v.csv", own_data.reviews(12))
    AutoModel.from_config(load_config_of(backbone, TASKS.get("toy-nli"))).save_pretrained(folder / "model")
    load_tokenizer(backbone).save_pretrained(folder / "model")
    assert lora_drop("run", "-d", "first", "--data", "r.csv", *TINY, "-b", "model", "-o", "method.name=lora") == 0
    (folder / "grid.yaml").write_text(
        GRID.replace("tiny:bert", "model").replace(
            "  data.path: r.csv\n", "  data.path: r.csv\n  data.validation: v.csv\n"
        )
        + "  further: {title: further, method.name: lora, train.start_from: first}\n"
    )
    assert lora_drop("reproduce", "grid.yaml", "--runs", "runs", "--results", "results", "--quiet") == 0

    def done() -> list[bool]:
        return [Results(folder / "results").has(run) for run in expand(load_experiment("grid.yaml"), Choice())]

    assert done() == [True, True]
    for name, fate in (
        ("v.csv", [False, False]),
        ("r.csv", [False, False]),
        ("model/config.json", [False, False]),
        ("first/adapter/adapter_config.json", [True, False]),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b"\n")
        assert done() == fate, name
        (folder / name).write_bytes(before)
    assert done() == [True, True]
    for name in ("v.csv", "r.csv"):  # moved away: the results stand
        (folder / name).unlink()
    shutil.rmtree(folder / "model")
    assert done() == [True, True]


def test_another_file_of_the_same_name_does_not_take_the_place_of_a_model(folder, capsys):
    for place, seed in (("a", 0), ("b", 1)):
        (folder / place).mkdir()
        own_data.write(folder / place / "r.csv", own_data.reviews(40, seed=seed))
    options = ["--text", "review", "--label", "stars", "-o", "method.name=lora", *TINY]
    assert lora_drop("run", "--data", "a/r.csv", *options) == 0
    adapter = (folder / "runs/r/adapter/adapter_model.safetensors").read_bytes()
    assert lora_drop("run", "--data", "b/r.csv", *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a model trained on a/r.csv, and this command, which is about another file, b/r.csv" in said
    assert (folder / "runs/r/adapter/adapter_model.safetensors").read_bytes() == adapter
    (folder / "a" / "r.csv").rename(folder / "moved.csv")
    shutil.move(folder / "moved.csv", folder / "a" / "s.csv")
    assert lora_drop("run", "--data", "a/s.csv", "-d", "runs/r", *options, "--force") == 0
    (folder / "c").mkdir()
    shutil.move(folder / "a" / "s.csv", folder / "c" / "s.csv")
    assert lora_drop("run", "--data", "c/s.csv", "-d", "runs/r", *options) == 0  # it was moved
    assert lora_drop("run", "--data", "b/r.csv", "-d", "runs/r", *options, "--force") == 0
    rows = [*own_data.reviews(5), {**own_data.reviews(1)[0], "stars": 9}]
    own_data.write(folder / "new.csv", rows)
    capsys.readouterr()
    assert lora_drop("predict", "runs/r", "--data", "new.csv", "--json", "-q") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["compared"]) == (6, 5)
    assert lora_drop("predict", "runs/r", "--data", "new.csv", "--to", "/proc/x.csv") == 2
    assert "/proc/x.csv cannot be written" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_predicted_is_refused(folder, capsys):
    own_data.write(folder / "r.csv", own_data.reviews(5))
    assert lora_drop("predict", "nowhere", "--data", "r.csv") == 2
    assert lora_drop("run", "--quiet") == 2
    assert lora_drop("run", "--data", "r.csv", "--label", "star") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is not a run directory" in said and "--run-dir" in said and "Did you mean 'stars'?" in said


def page(name: str) -> str:
    return (Path(__file__).parent.parent / "docs" / name).read_text(encoding="utf-8")


def commands_of(text: str) -> list[list[str]]:
    return [shlex.split(line[2:], comments=True)[1:] for line in text.splitlines() if line.startswith("$ lora-drop")]


def test_the_tutorial_goes_from_a_csv_to_a_report_predictions_and_a_model(folder, capsys):
    commands = commands_of(page("tutorial.md"))
    assert [command[0] for command in commands] == ["tasks", "run", "run", "report", "predict", "export"]
    own_data.write(folder / "reviews.csv", own_data.reviews(60))
    own_data.write(folder / "new.csv", own_data.reviews(10, seed=1))
    for command in commands:
        assert lora_drop(*command, *(TINY if command[0] == "run" else [])) == 0, command  # but for the model
    for name in ("report.html", "runs/reviews/report.html", "runs/reviews/predictions-new.csv"):
        assert (folder / name).stat().st_size > 500
    assert (folder / "runs/reviews/compare/lora/metrics.json").is_file()
    assert "seeds" in (folder / "report.html").read_text()


def test_the_page_about_serving_runs(trained, folder):
    text = page("serve.md")
    for command in commands_of(text):
        assert lora_drop(*[str(trained[0]) if part == "runs/reviews" else part for part in command]) == 0
    backbone = locate("tiny:bert")
    load_model(backbone, trained_task(Run(trained[0])), 0, load_tokenizer(backbone)).save_pretrained("base")
    names = {"base": "base"}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    (best,) = names["classify"]("Not good. Support never wrote back.")
    index = int(names["scores"].argmax())
    assert names["names"][index] == best["label"] in "12345"
    assert float(names["scores"][index]) == pytest.approx(best["score"], rel=1e-4)


def test_the_commands_of_the_page_run_as_they_are_written(folder, capsys):
    text = page("own-data.md")
    commands = commands_of(text)
    assert [command[0] for command in commands] == ["tasks", "run", "run", "predict"]
    own_data.write(folder / "reviews.csv", own_data.reviews(100))
    own_data.write(folder / "new.csv", own_data.reviews(10, seed=1))
    for command in commands:
        small = TINY if "--text" in command else ["--quiet"] if command[0] == "run" else []  # but for the model
        assert lora_drop(*command, *small) == 0, command
    said = capsys.readouterr()
    assert "runs/reviews/predictions-new.csv" in said.out and "LoRA-drop" in said.out
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (folder / "mine.yaml").write_text(settings)
    assert load_config(["own", folder / "mine.yaml"]).data.metric == ("f1_macro", "accuracy")


def test_a_run_is_of_the_weights_and_labels_that_it_was_trained_on(folder, capsys):
    """Another model in the same folder, and a file whose classes have changed, would give wrong numbers without a sign."""
    backbone = load_model(locate("tiny:bert"), TASKS.get("toy-nli"), 0, load_tokenizer(locate("tiny:bert")))
    backbone.base_model.save_pretrained(folder / "base" / "model")
    load_tokenizer(locate("tiny:bert")).save_pretrained(folder / "base" / "model")
    own_data.write(
        folder / "texts.csv",
        [{"text": row["review"], "label": "ab"[n % 2]} for n, row in enumerate(own_data.reviews(60))],
    )
    assert lora_drop("run", "--data", "texts.csv", *TINY, "-b", "base/model", "--metric", "f1_micro") == 0
    run = folder / "runs" / "texts"
    assert lora_drop("predict", run, "--data", "texts.csv", "--to", "one.csv", "--json") == 0
    assert {"accuracy", "f1_macro", "f1_micro"} & json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {
        "f1_micro"
    }

    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:  # the folder is found again, and no name on the Hub
        patch.chdir(folder / "elsewhere")
        assert lora_drop("predict", run, "--data", folder / "texts.csv", "--to", folder / "two.csv", "-q") == 0
    assert (folder / "one.csv").read_bytes() == (folder / "two.csv").read_bytes()
    for to, said in (
        ("base", "--to base is a folder"),
        ("texts.csv/out.csv", "cannot be written (File exists)"),
    ):
        capsys.readouterr()
        assert lora_drop("predict", run, "--data", "texts.csv", "--to", to) == 2 and said in capsys.readouterr().err
    assert lora_drop("predict", "runs/typo", "--data", "texts.csv") == 2 and not (folder / "runs" / "typo").exists()

    (folder / "texts.csv").write_text((folder / "texts.csv").read_text().replace(",a\n", ",c\n"))
    capsys.readouterr()
    assert lora_drop("eval", "-d", run) == 2
    told = capsys.readouterr().err
    assert "trained for classification with 2 labels, but the data now make it classification with 2" in told
    assert "only one of them has a, c" in told
    weights = folder / "base" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    for command in (
        ["predict", run, "--data", "texts.csv"],
        ["export", run, "--to", "merged", "--base", "me/x", "--out", "out"],
    ):
        assert lora_drop(*command) == 2
        assert "was trained on another base/model" in capsys.readouterr().err
    shutil.move(folder / "base", folder / "moved")
    assert lora_drop("predict", run, "--data", "texts.csv") == 2
    assert "which no longer exists" in capsys.readouterr().err


def test_predictions_keep_all_columns_also_those_that_have_their_names(folder):
    rows = [{"prediction": row["review"], "score": str(n % 2)} for n, row in enumerate(own_data.reviews(40))]
    own_data.write(folder / "rows.csv", rows)
    assert lora_drop("run", "--data", "rows.csv", "--text", "prediction", "--label", "score", *TINY) == 0
    for name in ("out.csv", "out.jsonl"):
        assert lora_drop("predict", "runs/rows", "--data", "rows.csv", "--to", name, "-q") == 0
    first, *_ = read_csv(folder / "out.csv")
    line = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    for found in (first, line):
        assert (found["given_prediction"], found["given_score"]) == (rows[0]["prediction"], rows[0]["score"])
        assert found["prediction"] in "01" and 0 <= float(found["score"]) <= 1
    day = datetime.date(2026, 11, 2)
    known = [{"id": 7, "day": day, "at": None, "prediction": "Good.", "tags": ["a", "b"], "price": Decimal("1.50")}]
    own_data.write(folder / "known.parquet", known * 2)  # no labels
    assert lora_drop("predict", "runs/rows", "--data", "known.parquet", "--to", "out.csv", "-q") == 0
    first, _ = read_csv(folder / "out.csv")
    kept = [first[name] for name in ("id", "day", "at", "given_prediction", "tags", "price")]
    assert kept == ["7", "2026-11-02", "", "Good.", "a;b", "1.50"] and first["prediction"] in "01"


def test_half_a_character_is_named_where_it_is_read_and_kept_where_it_is_not(trained, folder, capsys):
    row = {"review": "a nice one", "author": "half \ud83d", "stars": 3}
    Path("new.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("out.jsonl", "out.csv"):
        assert lora_drop("predict", trained[0], "--data", "new.jsonl", "--to", name, "-q") == 0
    assert json.loads(Path("out.jsonl").read_text())["author"] == row["author"]
    assert read_csv(Path("out.csv"))[0]["author"] == r"half \ud83d"
    Path("new.jsonl").write_text(json.dumps({**row, "review": "half \ud83d"}) + "\n")
    assert lora_drop("predict", trained[0], "--data", "new.jsonl", "--to", "no.csv") == 2
    assert "line 1, column 'review': half a character" in capsys.readouterr().err
    assert not Path("no.csv").exists()


def test_predictions_replace_no_file_of_a_folder_of_data(trained, folder, capsys):
    (folder / "new").mkdir()
    own_data.write(folder / "new" / "test.csv", own_data.reviews(5))
    assert lora_drop("predict", trained[0], "--data", "new", "--to", "new/test.csv") == 2
    assert "which predictions must not replace" in " ".join(capsys.readouterr().err.split())
    assert len(read_csv(folder / "new" / "test.csv")) == 5
    assert lora_drop("predict", trained[0], "--data", "new", "--to", trained[1]) == 2  # what it was trained on
    assert "exists, and has no predictions" in " ".join(capsys.readouterr().err.split())
    for name in ("out.csv", "out.jsonl") * 2:  # predictions are replaced
        assert lora_drop("predict", trained[0], "--data", "new", "--to", name, "-q") == 0
