import json

import pytest
import torch
from models import backbone, inputs, method, randomise_b
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from test_adapters import BASE, batch, bert, fill

import lora_drop
from lora_drop.errors import UserError
from lora_drop.methods.base import count_parameters
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.selection import Layers, Selection
from lora_drop.pruning.sharing import ties
from lora_drop.registry import METHODS


def selection(retained=(1, 3), layers=4, share=True) -> Selection:
    rest = tuple(layer for layer in range(layers) if layer not in retained)
    return Selection(
        "threshold", 0.9, share, {name: Layers(tuple(retained), rest, 0.9) for name in ("query", "value")}, 0
    )


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def dropped(name="tiny:roberta", **options):
    model, tokenizer = backbone(name)
    trained = method("lora_drop", model, selection(**options))
    randomise_b(trained, 1)
    return trained, inputs(tokenizer)


def test_shared_layers_hold_the_same_objects():
    model, _ = dropped()
    layers = {name: lora.layer for name, lora in loras(model).items()}
    query = [layers[f"roberta.encoder.layer.{index}.attention.self.query"] for index in range(4)]
    assert (
        query[0].lora_A["default"] is query[2].lora_A["default"]
        and query[0].lora_B["default"] is query[2].lora_B["default"]
    )
    assert len({id(layer.lora_A["default"]) for layer in query}) == 3
    value = layers["roberta.encoder.layer.0.attention.self.value"]
    assert value.lora_A["default"] is not query[0].lora_A["default"]


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
def test_parameters_are_counted_once(name):
    model, _ = dropped(name)
    sizes = {"tiny:llama": 3 * (8 * (32 + 32)) + 3 * (8 * (32 + 16))}
    assert count_parameters(model).adapter == sizes.get(name, 6 * 8 * (32 + 32))


def test_without_share_the_low_layers_have_no_lora():
    model, _ = dropped(share=False)
    assert sorted(loras(model)) == sorted(
        f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in (1, 3) for name in ("query", "value")
    )


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
def test_saved_adapter_in_plain_peft_gives_the_same_logits(name, tmp_path):
    model, batch = dropped(name)
    METHODS.get("lora_drop").save(model, tmp_path)
    loaded = PeftModel.from_pretrained(backbone(name)[0], str(tmp_path))
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-6)


def test_loaded_by_us_it_is_tied_again_and_trainable(tmp_path):
    model, batch = dropped()
    METHODS.get("lora_drop").save(model, tmp_path)
    loaded = METHODS.get("lora_drop").load(backbone()[0], tmp_path)
    assert ties(loaded) == ties(model) and len(ties(loaded)) == 2
    assert count_parameters(loaded) == count_parameters(model)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_merged_it_gives_the_same_logits():
    model, batch = dropped()
    expected = logits(model, batch)
    torch.testing.assert_close(logits(model.merge_and_unload(), batch), expected, rtol=0, atol=1e-5)


def test_a_tie_survives_a_cast_and_trains_as_one():
    model, batch = dropped()
    model.to(torch.bfloat16).to(torch.float32)
    model.train()(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
    first, second = (loras(model)[f"roberta.encoder.layer.{index}.attention.self.query"].layer for index in (0, 2))
    assert first.lora_B["default"].weight is second.lora_B["default"].weight
    assert first.lora_A["default"].weight.grad.abs().sum() > 0


def test_saved_keys_are_exactly_plain_loras(tmp_path):
    from safetensors.torch import load_file

    for name in ("lora", "lora_drop"):
        model = method(name, backbone()[0], selection() if name == "lora_drop" else None)
        METHODS.get(name).save(model, tmp_path / name)
    keys = [set(load_file(tmp_path / name / "adapter_model.safetensors")) for name in ("lora", "lora_drop")]
    assert keys[0] == keys[1]
    assert not (tmp_path / "lora" / "README.md").exists()


@pytest.mark.parametrize(("given", "scaling"), [({"alpha": 20}, 5.0), ({}, 2.0)])
@pytest.mark.parametrize("name", ["lora", "lora_drop", "adalora"])
def test_rank_alpha_and_dropout_are_those_of_the_configuration(name, given, scaling):
    chosen = selection() if name == "lora_drop" else None
    model = method(name, backbone()[0], chosen, rank=4, dropout=0.25, **given)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 8
    for layer in layers:
        assert layer.lora_dropout["default"].p == 0.25
        if name != "adalora":  # which begins with more than the rank, and divides by what it has left
            assert (layer.r["default"], layer.scaling["default"]) == (4, scaling)
        else:
            assert layer.lora_alpha["default"] == 4 * scaling


def test_everything_retained_is_plain_lora():
    whole = method("lora_drop", backbone()[0], selection(retained=(0, 1, 2, 3)))
    plain = method("lora", backbone()[0])
    for (name, one), (other, two) in zip(whole.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two) and one.requires_grad == two.requires_grad


def test_full_fine_tuning_round_trip(tmp_path):
    model, tokenizer = backbone()
    trained = method("full", model)
    assert count_parameters(trained).adapter + count_parameters(trained).head == sum(
        weight.numel() for weight in model.parameters()
    )
    expected = logits(trained, inputs(tokenizer))
    METHODS.get("full").save(trained, tmp_path)
    assert torch.equal(logits(METHODS.get("full").load(backbone(seed=5)[0], tmp_path), inputs(tokenizer)), expected)


def test_damaged_adapters_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = dropped()
    METHODS.get("lora_drop").save(model, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = {
        name: tensor.clone() for name, tensor in load_file(weights).items()
    }  # else mapped: the file is overwritten below
    compact = {name: tensor for name, tensor in whole.items() if "layer.2.attention.self.query" not in name}
    save_file(compact, weights)
    with pytest.raises(UserError, match="2 tensors missing"):
        METHODS.get("lora_drop").load(backbone()[0], tmp_path)
    weights.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="no adapter for this model"):
        METHODS.get("lora_drop").load(backbone()[0], tmp_path)
    save_file(whole, weights)
    (tmp_path / "lora_drop.json").write_text(json.dumps({"tied": [["nowhere", "else"]]}))
    with pytest.raises(UserError, match="names nowhere"):
        METHODS.get("lora_drop").load(backbone()[0], tmp_path)
    (tmp_path / "lora_drop.json").unlink()
    with pytest.raises(UserError, match=r"has no lora_drop\.json, which says what layers share: it was saved by PEFT"):
        METHODS.get("lora_drop").load(backbone()[0], tmp_path)


def test_copies_that_contradict_their_tie_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = dropped()
    METHODS.get("lora_drop").save(model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in weights if "layer.2.attention.self.query.lora_B" in name)
    save_file({**weights, name: -3 * weights[name]}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lora_B of .* differ"):
        METHODS.get("lora_drop").load(backbone()[0], tmp_path)


@pytest.mark.parametrize("name", ["lora", "lora_drop", "vera", "tied_lora"])
def test_modules_without_pretrained_weights_are_trained_and_saved(name, tmp_path):
    """DeBERTa-v2's pooler is not in the pretrained checkpoint: left frozen and unsaved, every load would draw another one."""
    from transformers import AutoConfig, AutoModel

    from lora_drop.models.backbones import load_model, load_tokenizer, locate
    from lora_drop.registry import TASKS

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 300,
    }
    AutoModel.from_config(AutoConfig.for_model("deberta-v2", **sizes)).save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(locate("tiny:bert"))

    def load(seed):
        return load_model(locate(str(tmp_path / "model")), TASKS.get("toy-nli"), seed, tokenizer)

    model = method(name, load(0), selection() if name == "lora_drop" else None)
    assert count_parameters(model).head == 32 * 32 + 32 + 2 * 32 + 2  # pooler and classifier, each with its bias
    (tmp_path / "adapter").mkdir()
    METHODS.get(name).save(model, tmp_path / "adapter")
    batch = inputs(tokenizer)
    batch.pop("token_type_ids", None)
    assert torch.equal(logits(METHODS.get(name).load(load(1), tmp_path / "adapter"), batch), logits(model, batch))


def test_a_selection_for_another_model_is_refused():
    with pytest.raises(UserError, match="differ"):
        method("lora_drop", backbone()[0], selection(layers=6))
    with pytest.raises(UserError, match="needs a selection"):
        method("lora_drop", backbone()[0])


def test_unknown_method():
    assert set(METHODS.names()) >= {"full", "lora", "lora_drop"}
    with pytest.raises(UserError, match="Did you mean 'lora_drop'"):
        METHODS.get("loradrop")


@pytest.mark.parametrize("place", ["intermediate", "output"])
def test_layers_of_different_widths_share_nothing(place):
    """The last layer is wider inside: there the first of these projections puts out more, and the second takes in more."""
    model = bert()
    model.bert.encoder.layer[3].intermediate.dense = torch.nn.Linear(32, 48)
    model.bert.encoder.layer[3].output.dense = torch.nn.Linear(48, 32)
    modules = [f"layer.{layer}.{place}.dense" for layer in range(4)]
    model = fill(get_peft_model(model, LoraConfig(**{**BASE, "target_modules": modules})))
    (projection,) = {row.projection for row in lora_drop.score(model, [batch()]).rows}
    chosen = Selection("threshold", 0.9, True, {projection: Layers((1,), (0, 2, 3), 0.9)}, 0)
    with pytest.raises(UserError, match="different widths"):
        lora_drop.share(model, chosen)
    assert ties(model) == []


def test_the_shared_lora_is_that_of_the_lowest_layer():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    chosen = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.2)
    first = {name: lora.down.clone() for name, lora in loras(model).items()}
    lora_drop.share(model, chosen)
    for projection, layers in chosen.projections.items():
        assert len(layers.shared) > 1
        names = [f"bert.encoder.layer.{layer}.attention.self.{projection}" for layer in sorted(layers.shared)]
        assert all(torch.equal(loras(model)[name].down, first[names[0]]) for name in names)


def test_biases_that_are_all_trained_are_still_trained_where_a_layer_loses_its_lora():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE, bias="all")))
    learnt = {name.replace(".base_layer", "") for name, each in model.named_parameters() if each.requires_grad}
    lora_drop.share(model, lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.5, share=False))
    now = {name.replace(".base_layer", "") for name, each in model.named_parameters() if each.requires_grad}
    assert {name for name in learnt if "lora_" not in name} == {name for name in now if "lora_" not in name}


def test_an_adapter_that_is_not_active_is_no_lora_outside_the_layers():
    """Warnings are errors: none names its LoRA on the embeddings."""
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    model.add_adapter("other", LoraConfig(**{**BASE, "target_modules": ["word_embeddings"]}))
    scores = lora_drop.score(model, [batch()])
    lora_drop.share(model, lora_drop.select(scores, threshold=0.5))
    assert scores.left_out == () and len(ties(model)) == 2


@pytest.mark.parametrize(
    "start", [True, False, "gaussian", "eva", "orthogonal", "pissa_niter_4", "corda", "loftq", "lora_ga"]
)
def test_an_adapter_whose_start_has_moved_a_part_of_the_weights_is_not_scored(start):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    expected = lora_drop.score(model, [batch()]).rows
    model.peft_config["default"].init_lora_weights = start  # as the configuration of a saved adapter says
    if start in (True, False, "gaussian", "eva", "orthogonal"):
        assert lora_drop.score(model, [batch()]).rows == expected
    else:
        with pytest.raises(UserError, match=f"was initialised with '{start}', which moves a part of W"):
            lora_drop.score(model, [batch()])
