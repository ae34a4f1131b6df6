import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_drop.errors import UserError
from lora_drop.projections import find_places, layer_of, projection_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
ARCHITECTURES = {
    "bert": ({}, "bert.encoder.layer.2.attention.self.query"),
    "roberta": ({}, "roberta.encoder.layer.2.attention.self.query"),
    "distilbert": (
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 16},
        "distilbert.transformer.layer.2.attention.q_lin",
    ),
    "deberta-v2": ({}, "deberta.encoder.layer.2.attention.self.query_proj"),
    "llama": ({"num_key_value_heads": 1}, "model.layers.2.self_attn.q_proj"),
    "qwen2": ({"num_key_value_heads": 1}, "model.layers.2.self_attn.q_proj"),
    "opt": ({"ffn_dim": 16, "word_embed_proj_dim": 16}, "model.decoder.layers.2.self_attn.q_proj"),
}


def meta_model(architecture: str, options: dict | None = None) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(architecture, **{**SMALL, **(options or {})})
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_query_and_value_are_found_in_every_architecture(architecture):
    options, last = ARCHITECTURES[architecture]
    places = find_places(meta_model(architecture, options))
    assert [(place.projection, place.layer) for place in places] == [
        (name, layer) for layer in range(3) for name in _order(places)
    ]
    assert {place.projection for place in places} == {"query", "value"}
    assert last in [place.name for place in places]


def _order(places):
    return [place.projection for place in places[:2]]


def test_projections_can_be_given_by_hand():
    model = meta_model("llama", {"num_key_value_heads": 1})
    assert {place.projection for place in find_places(model, ["key", "gate_proj"])} == {"key", "gate_proj"}


def test_a_fused_projection_is_refused_with_the_reason():
    options = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    with pytest.raises(UserError, match=r"gpt2 computes query, key and value in one matrix \(c_attn\)"):
        find_places(meta_model("gpt2", options))


def test_a_missing_projection_names_what_is_there():
    with pytest.raises(UserError, match="Did you mean 'query'"):
        find_places(meta_model("bert"), ["qeury"])


def test_a_projection_that_occurs_twice_in_a_block_is_refused():
    with pytest.raises(UserError, match="would both be layer 0 of projection dense"):
        find_places(meta_model("bert"), ["dense"])


def test_names_are_parsed():
    assert layer_of("transformer.h.11.attn.q_proj") == 11
    assert layer_of("encoder.layer.3.experts.7.query") == 3
    assert [projection_of(name) for name in ("a.0.q_lin", "a.0.v_proj", "a.0.dense")] == ["query", "value", "dense"]
    with pytest.raises(UserError, match="no layer number"):
        layer_of("classifier.dense")
