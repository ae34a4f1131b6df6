"""The pages for training loops of one's own are run, block after block, in one folder."""

import re
from pathlib import Path

import pytest
import torch
from models import backbone

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
