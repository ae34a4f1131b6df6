import json

import pytest
import torch
from models import backbone, inputs, method, randomise_b
from peft import PeftModel

from lora_drop.errors import UserError
from lora_drop.importance import lora_layers
from lora_drop.methods import get_method, method_names
from lora_drop.methods.base import count_parameters
from lora_drop.methods.lora_drop import ties
from lora_drop.selection import Layers, Selection


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
    layers = lora_layers(model)
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
    assert sorted(lora_layers(model)) == sorted(
        f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in (1, 3) for name in ("query", "value")
    )


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
def test_saved_adapter_in_plain_peft_gives_the_same_logits(name, tmp_path):
    model, batch = dropped(name)
    get_method("lora_drop").save(model, tmp_path)
    loaded = PeftModel.from_pretrained(backbone(name)[0], str(tmp_path))
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-6)


def test_loaded_by_us_it_is_tied_again_and_trainable(tmp_path):
    model, batch = dropped()
    get_method("lora_drop").save(model, tmp_path)
    loaded = get_method("lora_drop").load(backbone()[0], tmp_path)
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
    first, second = (lora_layers(model)[f"roberta.encoder.layer.{index}.attention.self.query"] for index in (0, 2))
    assert first.lora_B["default"].weight is second.lora_B["default"].weight
    assert first.lora_A["default"].weight.grad.abs().sum() > 0


def test_saved_keys_are_exactly_plain_loras(tmp_path):
    from safetensors.torch import load_file

    for name in ("lora", "lora_drop"):
        model = method(name, backbone()[0], selection() if name == "lora_drop" else None)
        get_method(name).save(model, tmp_path / name)
    keys = [set(load_file(tmp_path / name / "adapter_model.safetensors")) for name in ("lora", "lora_drop")]
    assert keys[0] == keys[1]
    assert not (tmp_path / "lora" / "README.md").exists()


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
    get_method("full").save(trained, tmp_path)
    assert torch.equal(logits(get_method("full").load(backbone(seed=5)[0], tmp_path), inputs(tokenizer)), expected)


def test_damaged_adapters_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = dropped()
    get_method("lora_drop").save(model, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = load_file(weights)
    compact = {name: tensor for name, tensor in whole.items() if "layer.2.attention.self.query" not in name}
    save_file(compact, weights)
    with pytest.raises(UserError, match="2 tensors missing"):
        get_method("lora_drop").load(backbone()[0], tmp_path)
    weights.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="no adapter for this model"):
        get_method("lora_drop").load(backbone()[0], tmp_path)
    save_file(whole, weights)
    (tmp_path / "lora_drop.json").write_text(json.dumps({"tied": [["nowhere", "else"]]}))
    with pytest.raises(UserError, match="speaks of nowhere"):
        get_method("lora_drop").load(backbone()[0], tmp_path)
    (tmp_path / "lora_drop.json").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        get_method("lora_drop").load(backbone()[0], tmp_path)


def test_a_selection_for_another_model_is_refused():
    with pytest.raises(UserError, match="differ"):
        method("lora_drop", backbone()[0], selection(layers=6))
    with pytest.raises(UserError, match="needs a selection"):
        method("lora_drop", backbone()[0])


def test_unknown_method():
    assert set(method_names()) >= {"full", "lora", "lora_drop"}
    with pytest.raises(UserError, match="Did you mean 'lora_drop'"):
        get_method("loradrop")
