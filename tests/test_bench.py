"""`lora-drop bench` as it is called, as small as it can be. Nothing here says how fast anything is."""

import json
import os

import pytest

from lora_drop import cli
from lora_drop.bench.goals import GOALS, judge
from lora_drop.bench.settings import settle
from lora_drop.bench.tables import machine_line, tables
from lora_drop.bench.variants import megabatch, padded
from lora_drop.bench.workload import Subject
from lora_drop.progress import SILENT

SMALL = ("--quick", "--rounds", "1", "--rows", "6", "--batch-size", "3", "--device", "cpu", "--threads", "1")


def bench(folder, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *SMALL, "--out", str(folder), "--quiet", *arguments])
    return end.value.code


def settings(task: str, **options):
    sizes = {"rounds": None, "rows": 6, "batch_size": 3, "max_length": None, "quick": True, "precision": "fp32"}
    where = {"data_dir": None, "device": "cpu", "offline": True, "seed": 0}
    return settle(**{"task": task, "backbone": None, "parts": None, "seq_lengths": "real", **sizes, **where, **options})


def test_a_benchmark_stores_all_that_it_has_measured(tmp_path, capsys):
    assert bench(tmp_path, "--task", "toy-nli", "--json") == 0
    result = json.loads((tmp_path / "tiny-bert-toy-nli-cpu-quick.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parts"] == result["parts"]
    assert {"benchmark", "machine", "versions", "commit", "parts", "goals"} <= set(result)
    assert result["machine"]["threads"] == 1 and result["machine"]["cores"] == os.cpu_count()

    (train,) = result["parts"]["train"]
    work, rounds = train["workload"], train["rounds"]
    assert (work["rows"], work["tokens_if_padded"]) == (6, 6 * 128) and 0 < work["tokens"] < 6 * 128
    assert set(rounds["seconds"]) == {"product", "stock", "grouped", "ours"}
    assert all(len(seconds) == 1 for seconds in rounds["seconds"].values())
    assert sorted(rounds["orders"][0]) == sorted(rounds["seconds"]) and len(rounds["other_load_cores"]) == 1
    ours, stock = (rounds["seconds"][name][0] for name in ("ours", "stock"))
    assert train["ratios"]["ours/stock"]["median"] == pytest.approx(stock / ours)
    variant = train["variants"]["ours"]
    assert variant["tokens_per_second"]["median"] == pytest.approx(work["tokens"] / ours)
    peak = 2 * train["product"]["size"] ** 3 / rounds["seconds"]["product"][0]
    assert variant["fraction_needed"]["median"] == pytest.approx(train["flops"]["needed"] / ours / peak)

    share = result["parts"]["share"]
    spent = sum(share["seconds"].values())
    assert share["training_seconds"] == pytest.approx(30 * share["tokens"] * share["training_seconds_per_token"])
    assert share["share"] == pytest.approx(spent / (spent + share["training_seconds"]))
    ways = result["parts"]["score"]["ways"]
    assert list(ways) == ["padded", "packed"] and all(way["ratio"]["rounds"] == 1 for way in ways.values())
    assert train["path"].startswith("packed") and result["parts"]["startup"]["ratio"]["rounds"] == 1
    assert list(result["parts"]["scaling"]["axes"]) == ["rows", "length", "layers", "rank"]
    assert (tmp_path / "tiny-bert-toy-nli-cpu-quick.png").stat().st_size > 0


def test_generation_is_measured_on_tasks_that_are_written(tmp_path, capsys):
    assert bench(tmp_path, "--task", "toy-nlg", "--parts", "generation,train") == 0
    result = json.loads((tmp_path / "tiny-llama-toy-nlg-cpu-train-generation-quick.json").read_text())
    assert list(result["parts"]) == ["train", "generation"]
    written = result["parts"]["generation"]
    assert written["generated_tokens"]["ordered"] == written["generated_tokens"]["file order"] > 0
    assert "Generating for" in capsys.readouterr().out


def test_generated_rows_have_the_lengths_asked_for(tmp_path, capsys):
    assert bench(tmp_path, "--task", "toy-nli", "--parts", "train", "--seq-lengths", "8,16") == 0
    (path,) = tmp_path.glob("*.json")
    assert path.name == "tiny-bert-toy-nli-cpu-8-16-train-quick.json"
    works = [entry["workload"] for entry in json.loads(path.read_text())["parts"]["train"]]
    assert [(work["name"], work["tokens"]) for work in works] == [("8", 48), ("16", 96)]
    assert "generated rows of 16 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--parts", "trian"], "Did you mean 'train'"),
        (["--parts", "generation"], "needs a task that is written"),
        (["--task", "rtee"], "Did you mean 'rte'"),
        (["--seq-lengths", "short"], "give 'real', or numbers"),
        (["--seq-lengths", "2"], "at least 4 tokens"),
        (["--precision", "fp8"], "fp32, bf16, fp16"),
        (["--seq-lengths", "4000"], "positions"),
        (["--task", "rte", "--offline"], "--task toy-nli"),
        (["--task", "rte", "--offline"], "LORA_DROP_DATA"),
        (["--backbone", "shape:bert"], "shape:roberta-base"),
    ],
)
def test_mistakes_say_what_to_do(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LORA_DROP_DATA", raising=False)
    given = arguments if "--task" in arguments else ["--task", "toy-nli", *arguments]
    assert bench(tmp_path, *given) == 2
    message = capsys.readouterr().err
    assert text in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_stock_rows_are_padded_as_the_tokenizer_pads():
    subject = Subject(settings("toy-nli"), SILENT)
    rows = padded(subject.real.rows, subject.tokenizer, 128)
    texts = subject.data.train_rows
    expected = subject.tokenizer(
        list(texts["text"]), list(texts["text_pair"]), padding="max_length", max_length=128, truncation=True
    )
    assert list(rows["input_ids"]) == expected["input_ids"]
    assert list(rows["attention_mask"]) == expected["attention_mask"]


def test_the_trainer_groups_as_in_the_whole_task():
    assert [megabatch(rows, 32) for rows in (10, 256, 2_490, 392_702)] == [1, 2, 19, 50]


def test_all_variants_get_the_same_model():
    subject = Subject(settings("toy-nli"), SILENT)
    one, other = subject.lora(), subject.lora()
    for (name, first), (_, second) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert first.equal(second), name


def test_what_is_learned_decides_what_a_generator_needs():
    subject = Subject(settings("toy-nlg"), SILENT)
    rows = subject.generated(10).shapes(generator=True)
    assert list(rows.lengths) == [10] * 6 and list(rows.learned) == [5] * 6


def test_a_goal_knows_whether_it_is_reached():
    faster, cheaper = GOALS[0], next(goal for goal in GOALS if goal.at_most)
    assert [faster.state(value) for value in (2.5, 2.6, 3.2)] == ["below the floor", "floor reached", "aim reached"]
    assert [cheaper.state(value) for value in (1.06, 1.05, 1.0)] == ["below the floor", "floor reached", "aim reached"]


def test_goals_are_for_what_they_were_set():
    found = {
        "score": {"ways": {"padded": {"ratio": {"median": 1.01}}, "packed": {"ratio": {"median": 1.03}}}},
        "train": [training("real"), training("64")],
    }
    whole = {goal["name"]: goal for goal in judge(found, settings("rte", backbone="packaged:minilm-l6"), "cpu")}
    assert whole["training against stock"]["reached"] == 3.0
    assert whole["score against a plain forward pass"]["state"] == "floor reached"
    assert "training against stock" not in {goal["name"] for goal in judge(found, settings("cola"), "cpu")}
    (roberta,) = [
        goal
        for goal in judge(found, settings("rte", backbone="shape:roberta-base"), "cuda")
        if goal["name"] == "training against stock"
    ]
    assert (roberta["floor"], roberta["aim"]) == (3, 6)
    generated = judge({"train": [training("64")]}, settings("rte", backbone="packaged:minilm-l6"), "cpu")
    assert generated == []


def training(name: str) -> dict:
    """What part `train` finds, as far as the goals and the tables read it."""
    spread = {"median": 0.5, "low": 0.4, "high": 0.6, "rounds": 3}
    variant = {"samples_per_second": spread, "tokens_per_second": spread, "memory_mb": 10}
    variant |= {"fraction_full": spread, "fraction_needed": spread}
    ratios = {pair: {**spread, "median": 3.0} for pair in ("ours/stock", "ours/grouped", "grouped/stock")}
    return {
        "workload": {"name": name, "rows": 2, "tokens": 30, "tokens_if_padded": 60},
        "path": "packed",
        "product": {"size": 8, "dtype": "torch.float32", "flops_per_second": spread},
        "flops": {"full": 2, "needed": 1},
        "variants": dict.fromkeys(("stock", "grouped", "ours"), variant),
        "ratios": ratios,
        "rounds": {"noisy_rounds": [1], "orders": [[], [], []]},
    }


def test_tables_say_what_was_disturbed_and_where():
    goal = {"name": "speed", "floor": 2.6, "aim": 3.2, "at_most": False, "reached": 3.0, "state": "floor reached"}
    asked = {"task": "rte", "backbone": "b", "batch_size": 32, "precision": "bf16", "rounds": 3, "quick": False}
    result = {
        "benchmark": asked,
        "machine": {"gpu": "some GPU"},
        "parts": {"train": [training("real")]},
        "goals": [goal],
    }
    assert "some GPU; 3 rounds" in machine_line(result)
    train, goals = tables(result)
    assert "50% is padding" in train.title and "in 1 of 3 rounds" in train.notes[-1]
    assert train.rows[-1][3] == "3.00 (0.40 to 0.60)"
    assert goals.rows == [["speed", "≥ 2.60", "≥ 3.20", "3.00", "floor reached"]]
