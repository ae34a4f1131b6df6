"""GLUE on a decoder (the paper's Table 4): the last real token goes into a classifier."""

import pytest
import torch
from datasets import Dataset
from test_pipeline import run

import lora_drop
from lora_drop.config.schema import MethodConfig
from lora_drop.data.sentences import collator, encode
from lora_drop.files import read_json
from lora_drop.methods.base import count_parameters
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.sharing import ties
from lora_drop.registry import METHODS, TASKS


@pytest.fixture(scope="module")
def decoder():
    """A tiny decoder with a classifier of two labels, under a LoRA."""
    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located)
    model = METHODS.get("lora").build(
        load_model(located, TASKS.get("toy-nli"), 0, tokenizer), MethodConfig(rank=4), 0, None
    )
    return model.eval(), tokenizer


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_logits(decoder, side):
    model, tokenizer = decoder
    tokenizer.padding_side = side
    texts = ["one", "a sentence of more words", "x " * 40]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        apart = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-4)
    tokenizer.padding_side = "right"


def test_a_classifier_is_padded_on_the_right_a_generator_on_the_left():
    assert load_tokenizer(locate("tiny:llama")).padding_side == "right"
    assert load_tokenizer(locate("tiny:llama"), causal=True).padding_side == "left"


def test_the_padding_token_is_known_to_the_model(decoder):
    model, tokenizer = decoder
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None


def test_a_pair_is_parted_also_by_a_tokenizer_that_would_not():
    rows = Dataset.from_dict({"text": ["One."], "text_pair": ["Two."], "label": [0]})
    tokenizer = load_tokenizer(locate("tiny:llama"))
    assert tokenizer.decode(encode(rows, tokenizer, 50)[0][0]["input_ids"]) == "<s>One.</s>Two.</s>"
    tokenizer.backend_tokenizer.post_processor = None
    assert tokenizer.decode(encode(rows, tokenizer, 50)[0][0]["input_ids"]) == "One.\nTwo."


@pytest.mark.slow
def test_the_whole_pipeline_with_the_head_trained_saved_and_counted_apart(tmp_path):
    told, summary = run(tmp_path / "run", "backbone=tiny:llama", "train.epochs=1")
    assert told.done == ["sample", "score", "select", "picture", "train", "eval"]
    assert summary.results[0]["head"] == 2 * 32
    selection = read_json(tmp_path / "run" / "selection.json")
    assert summary.results[0]["parameters"] == selection["trainable_parameters"]
    model, tokenizer = lora_drop.load_run(tmp_path / "run", device="cpu")
    assert ties(model) and tokenizer.padding_side == "right"
    fresh = load_model(locate("tiny:llama"), TASKS.get("toy-nli"), 0, tokenizer)
    (trained,) = [weight for name, weight in model.named_parameters() if "modules_to_save" in name]
    assert trained.shape == fresh.score.weight.shape and not torch.equal(trained, fresh.score.weight)


@pytest.mark.parametrize(("rank", "expected"), [(8, 4_194_304), (16, 8_388_608)])
@pytest.mark.parametrize("task", ["rte", "e2e"])
def test_parameters_of_llama_2_7b_from_its_shapes_alone(rank, expected, task):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    kind = AutoModelForCausalLM if task == "e2e" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.for_model("llama", num_labels=2, **sizes))
    counted = count_parameters(METHODS.get("lora").build(model, MethodConfig(rank=rank), 0, None))
    assert (counted.adapter, counted.head) == (expected, 0 if task == "e2e" else 2 * 4096)


def test_grouped_heads_are_scored_by_their_own_widths(decoder):
    model, tokenizer = decoder
    for layer in (lora.layer for lora in loras(model).values()):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    rows = Dataset.from_dict({"text": ["one", "two more words"], "label": [0, 1]})
    encoded, *_ = encode(rows, tokenizer, 50)
    scores = lora_drop.score(model, [collator(tokenizer)(list(encoded))])
    sizes = {(row.projection, row.parameters) for row in scores.rows}
    assert sizes == {("query", 4 * (32 + 32)), ("value", 4 * (32 + 16))}
    for projection in ("query", "value"):
        assert sum(row.importance for row in scores.rows if row.projection == projection) == pytest.approx(1)
