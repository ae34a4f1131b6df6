"""The pages for training loops of one's own are run, block after block, in one folder."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from models import backbone, trained_lora
from small_files import write_small_files

from lora_drop.cli import app as cli
from lora_drop.pruning.importance import score
from lora_drop.pruning.sharing import ties

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parent.parent / "docs"
TEXTS = [f"a {word} sentence, number {number}" for number in range(12) for word in ("good", "bad")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(folder: Path, name: str) -> Path:
    model, tokenizer = backbone(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(page: str, names: dict) -> dict:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def trains_shared(names: dict) -> None:
    """The model is tied as the selection says, and what it has learnt is in the file."""
    model, selection = names["model"], names["selection"]
    assert len(ties(model)) == sum(len(layers.shared) > 1 for layers in selection.projections.values())
    learnt = {id(each): each for name, each in model.named_parameters() if "lora_" in name}
    assert sum(each.numel() for each in learnt.values()) == selection.trainable_parameters
    assert any(float(each.detach().abs().sum()) for name, each in model.named_parameters() if "lora_B" in name)
    assert Path("adapter/adapter_model.safetensors").is_file()


def test_trainer_and_reload(place):
    folder = saved(place / "backbone", "tiny:bert")
    trains_shared(run("trainer.md", {"folder": folder, "texts": TEXTS, "labels": [0, 1] * 12}))
    run("reload.md", {"folder": folder})


def test_the_commands_of_the_page_on_criteria(place, monkeypatch):
    """With a tiny backbone; the runs that they speak of are those of docs/commands.md."""
    write_small_files(place / "data")
    monkeypatch.setenv("LORA_DROP_DATA", str(place / "data"))
    page = (DOCS / "criteria.md").read_text(encoding="utf-8")
    lines = [shlex.split(line[2:], comments=True)[1:] for line in page.splitlines() if line.startswith("$ lora-drop ")]
    assert len(lines) == 4
    small = ["-o", "backbone=tiny:bert", "-o", "train.epochs=1", "-q"]
    for words in (["run", "-c", "glue/cola", "-c", "minilm-cpu", "-d", "runs/cola", "--compare", "lora"], *lines):
        added = ["--backbone", "tiny:bert", "--seeds", "0", "-q"] if words[0] == "reproduce" else small
        with pytest.raises(SystemExit) as end:
            cli.main([*words, *added])
        assert end.value.code == 0, words
    agreed = json.loads((place / "runs" / "cola" / "criteria.json").read_text())
    assert list(agreed["criteria"]) == ["output", "gradient", "weight"]
    theirs = yaml.safe_load((place / "runs" / "theirs" / "config.yaml").read_text())
    assert theirs["warmup"]["adapter"].endswith("runs/cola/compare/lora") and theirs["task"] == "cola"


def test_the_criterion_of_the_page_scores():
    names = run("criteria.md", {})
    model, _ = trained_lora("tiny:bert")
    scores = score(model, [], criterion=names["SIZE_OF_B"])
    first = scores.rows[0]
    weight = model.base_model.model.get_submodule(first.name).lora_B["default"].weight
    assert first.score == pytest.approx(float(weight.detach().norm())) and scores.criterion == "size_of_b"


def test_accelerate(place):
    folder = saved(place / "backbone", "tiny:bert")
    tokenizer = backbone("tiny:bert")[1]
    batch = {**tokenizer(TEXTS, padding=True, return_tensors="pt"), "labels": torch.tensor([0, 1] * 12)}
    rows = [{key: value[row] for key, value in batch.items()} for row in range(24)]
    names = {"folder": folder, "rows": rows, "sample": rows[:12]}
    names["make_loader"] = lambda chosen: torch.utils.data.DataLoader(chosen, batch_size=4)
    trains_shared(run("accelerate.md", names))


@pytest.mark.filterwarnings("default")  # what TRL and transformers say of each other
def test_trl(place):
    pytest.importorskip("trl", reason="needs trl, which nothing else uses")
    from lora_drop.models.backbones import load_model, load_tokenizer, locate
    from lora_drop.registry import TASKS

    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located, causal=True)
    load_model(located, TASKS.get("toy-nlg"), 0, tokenizer).save_pretrained(place / "backbone")
    tokenizer.save_pretrained(place / "backbone")
    names = run("trl.md", {"folder": place / "backbone", "texts": TEXTS})
    trains_shared({"model": names["resumed"].model, "selection": names["selection"]})
    assert names["resumed"].state.global_step == 2 * names["training"].state.global_step
