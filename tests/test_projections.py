import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_drop.errors import UserError
from lora_drop.pruning.places import all_places, find_places, fused_notice

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


@pytest.mark.parametrize(
    ("architecture", "leaf", "options"),
    [
        ("gpt2", "c_attn", {}),
        ("gpt_neox", "query_key_value", {}),
        ("falcon", "query_key_value", {}),
        ("phi3", "qkv_proj", {"pad_token_id": 0}),
        ("modernbert", "Wqkv", {"pad_token_id": 0}),
        ("deberta", "in_proj", {}),
    ],
)
def test_one_matrix_for_all_three_is_one_projection(architecture, leaf, options):
    model = meta_model(architecture, options)
    places = find_places(model)
    assert [(place.projection, place.layer) for place in places] == [("qkv", layer) for layer in range(3)]
    assert all(place.name.endswith(f".{leaf}") for place in places)
    assert f"one matrix ({leaf})" in fused_notice(model, ["query", "value"])
    assert fused_notice(meta_model("bert"), ["query", "value"]) is None


def test_a_missing_projection_names_what_is_there():
    with pytest.raises(
        UserError, match=r"Did you mean 'query'\? Its projections: query, key, value, attention.output.dense"
    ):
        find_places(meta_model("bert"), ["qeury"])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("dense", {"attention.output.dense", "intermediate.dense", "output.dense"}),
        ("attention.output.dense", {"attention.output.dense"}),
        ("output.dense", {"output.dense"}),
        ("self.query", {"query"}),
    ],
)
def test_a_projection_is_named_by_its_last_part_or_by_a_path(asked, found):
    places = find_places(meta_model("bert"), [asked])
    assert {place.projection for place in places} == found
    assert len({(place.projection, place.layer) for place in places}) == len(places) == 3 * len(found)


def test_all_linear_leaves_out_head_and_pooler():
    names = {place.name for place in find_places(meta_model("bert"), ["all-linear"])}
    assert len(names) == 3 * 6 and not any("pooler" in name or "classifier" in name for name in names)


def test_an_encoder_decoder_keeps_its_stacks_and_attentions_apart():
    options = {
        "encoder_layers": 2,
        "num_hidden_layers": 2,  # the same, under the name that newer versions of transformers read
        "decoder_layers": 3,
        "d_model": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    places = find_places(meta_model("bart", options))
    layers = {}
    for place in places:
        layers.setdefault(place.projection, []).append(place.layer)
    assert layers == {
        f"{where}.{projection}": list(range(count))
        for where, count in (("encoder.self_attn", 2), ("decoder.self_attn", 3), ("decoder.encoder_attn", 3))
        for projection in ("query", "value")
    }
    assert len(find_places(meta_model("bart", options), ["decoder.self_attn.query"])) == 3


def test_places_of_a_peft_model_are_those_of_its_backbone():
    model = meta_model("bert")
    before = all_places(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query", "dense"]))
    assert all_places(wrapped) == before


def test_a_model_without_numbered_blocks_is_refused():
    with pytest.raises(UserError, match="no linear modules in numbered blocks"):
        find_places(torch.nn.ModuleDict({"only": torch.nn.Linear(2, 2)}))
