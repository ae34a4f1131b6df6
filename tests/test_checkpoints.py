"""Every architecture from a checkpoint as the Hub has it, through the real command line, and what came of it in PEFT and in float64."""

import json
from pathlib import Path

import pytest
import torch
from architectures import ALL, Architecture, make_checkpoint, run, table_row
from models import acting_scores, inputs
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from lora_drop import load_run
from lora_drop.config.schema import MethodConfig
from lora_drop.methods.base import trainable
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning import importance
from lora_drop.pruning.places import find_places
from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import select
from lora_drop.pruning.sharing import ties
from lora_drop.registry import METHODS, TASKS

pytestmark = pytest.mark.slow

TASK = TASKS.get("toy-nli")
ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=ALL, ids=str)
def made(request, tmp_path_factory) -> tuple[Architecture, str, object]:
    """An architecture, its checkpoint, and a run of all five stages on it."""
    folder = tmp_path_factory.mktemp(str(request.param))
    backbone = make_checkpoint(folder / "backbone", request.param)
    return request.param, str(backbone), run(backbone, folder / "run")


def fresh(backbone: str) -> torch.nn.Module:
    located = locate(backbone)
    return load_model(located, TASK, 0, load_tokenizer(located))


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_the_adapter_works_in_plain_peft_and_merged(made):
    _, backbone, directory = made
    model, tokenizer = load_run(directory, "cpu")
    batch = inputs(tokenizer)
    expected = logits(model, batch)
    plain = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=2, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, directory / "adapter"), batch), expected)
    model.get_base_model().set_experts_implementation("eager")  # torch's grouped product knows no float64
    # in float64, where an untrained T5 does not blow roundings up; without padding, which Gemma 2 does not mask in float64
    longest = int(batch["attention_mask"].sum(1).argmax())
    row = {key: value[longest : longest + 1] for key, value in batch.items()}
    unmerged = logits(model.double(), row)
    torch.testing.assert_close(logits(model.merge_and_unload(), row), unmerged, rtol=1e-5, atol=1e-5)


def test_scores_equal_what_the_layers_add_in_float64(made):
    architecture, backbone, directory = made
    model = METHODS.get("lora").load(fresh(backbone), directory / "warmup")
    batch = inputs(load_tokenizer(locate(backbone)))
    scores = importance.score(model, [batch], per_example=True)
    model.get_base_model().set_experts_implementation("eager")  # torch's grouped product knows no float64
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [{key: value[row : row + 1, :length] for key, value in batch.items()} for row, length in enumerate(lengths)]
    seen = [batch] if architecture.mixes_padding else rows
    acting = acting_scores(model.double(), seen, first_call_only=architecture.model_type == "deberta-v2")
    assert {row.name: row.score for row in scores.rows} == pytest.approx(acting, rel=1e-5)
    for row in scores.rows:
        assert sum(scores.norms[row.name]) / scores.examples == pytest.approx(row.score, rel=1e-5)


def test_the_run_is_whole(made):
    architecture, _, directory = made
    scores = json.loads((directory / "scores.json").read_text())
    stability = json.loads((directory / "stability.json").read_text())
    selection = json.loads((directory / "selection.json").read_text())
    assert len(stability["modules"]) == len(scores["modules"])
    for row in stability["modules"]:
        assert 0 < row["low"] <= row["high"] and row["low"] - 0.05 <= row["importance"] <= row["high"] + 0.05
    assert set(selection["projections"]) == {row["projection"] for row in scores["modules"]}
    assert table_row(architecture, directory) in TABLE, "run scripts/make_models_table.py"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_saved_and_loaded(made, name, tmp_path):
    _, backbone, _ = made
    base = fresh(backbone)
    places = find_places(base)
    scored = [Scored(place.name, place.projection, place.layer, 1.0, 1 / (1 + place.layer), 1) for place in places]
    selection = select(scored, 0.5) if name == "lora_drop" else None
    method = METHODS.get(name)
    model = method.build(base, MethodConfig(name=name, rank=4), 0, selection)
    batch = inputs(load_tokenizer(locate(backbone)))
    if method.prepare is not None:
        method.prepare(model, [{**batch, "labels": torch.arange(len(batch["input_ids"])) % 2}])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator) * (parameter != 0))
    folder = tmp_path / "adapter"
    folder.mkdir()
    method.save(model, folder)
    loaded = method.load(fresh(backbone), folder)
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch))
    assert method.count(loaded) == method.count(model)
    if selection is not None:
        assert ties(loaded) == ties(model)
