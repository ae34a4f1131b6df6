"""Models whose attention is their own code are packed, too, without their code being known."""

import types

import pytest
import torch
from models import backbone, inputs, method, randomise_b
from test_packing import SIZES, assert_equal_paths, assert_same_when_repeated, gradients, labelled
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_drop.config.schema import MethodConfig
from lora_drop.methods.lora import add_lora
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.importance import score
from lora_drop.pruning.places import find_places
from lora_drop.training.packing import prepare

pytestmark = pytest.mark.slow

DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
KINDS = {
    "mpnet": {"pad_token_id": 1},
    "deberta": {**DISENTANGLED, "position_biased_input": False},
    "deberta-v2": {**DISENTANGLED, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "roformer": {"embedding_size": 32},
}
FIRST = "packed, last layer only for the first token of each row"


def bare(kind, **extra):
    """A small classifier; its weights are larger than fresh ones, so that layers and positions differ."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS.get(kind, {}), **extra}, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def adapted(kind, *projections, **extra):
    model = bare(kind, **extra)
    places = find_places(model, list(projections)) if projections else find_places(model)
    model = add_lora(model, MethodConfig(rank=4), 0, places)
    randomise_b(model, 0)
    return model


def batch_of(count):
    return labelled(backbone("tiny:roberta")[1], count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projections", [[], ["all-linear"], None])
def test_loss_and_gradients_are_those_of_the_stock_way(kind, projections):
    """Of LoRA on query and value, on everything, and of the whole model."""
    model = method("full", bare(kind)) if projections is None else adapted(kind, *projections)
    packing, how = prepare(model, batch_of(3))
    assert how == FIRST
    assert_equal_paths(model, batch_of(9), packing)


@pytest.mark.parametrize("name", ["vera", "tied_lora", "adalora", "sparse_adapter"])
def test_the_adapters_of_other_methods_are_known_as_projections(name):
    model = method(name, bare("mpnet"), rank=8)
    packing, how = prepare(model, batch_of(3))
    assert how == FIRST
    assert_equal_paths(model, batch_of(9), packing)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_they_are_equal_to_its_last_digits(kind):
    model = method("full", bare(kind)).double()
    packing, how = prepare(model, batch_of(3))
    assert how == FIRST
    model.eval()
    stock, expected = gradients(model, batch_of(9))
    with packing.over(batch_of(9)):
        value, found = gradients(model, batch_of(9))
    torch.testing.assert_close(value, stock, rtol=1e-12, atol=0)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        # DeBERTa divides by a scale that it keeps in fp32; both ways do so, but sum its parts in another order
        torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-10 * float(expected[name].abs().max() + 1))


def test_the_bias_of_the_positions_is_trained():
    model = method("full", bare("mpnet"))
    packing, _ = prepare(model, batch_of(3))
    with packing.over(batch_of(9)):
        _, found = gradients(model.eval(), batch_of(9))
    assert float(found["mpnet.encoder.relative_attention_bias.weight"].abs().max()) > 1e-6


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2"])
def test_scores_are_those_of_the_stock_way(kind):
    model = adapted(kind, "all-linear")
    batch = {name: value for name, value in batch_of(9).items() if name != "labels"}
    packing, _ = prepare(model, batch_of(3))
    stock, packed = score(model, [batch], per_example=True), score(model, [batch], per_example=True, packing=packing)
    assert [row.score for row in packed.rows] == pytest.approx([row.score for row in stock.rows], rel=1e-5)
    for layer in loras(model):
        assert packed.norms[layer] == pytest.approx(stock.norms[layer], rel=1e-5)


def test_relative_positions_do_not_count_also_where_they_are_as_many_as_the_tokens():
    model, lengths = adapted("deberta-v2"), torch.tensor([7, 6, 3])
    mask = (torch.arange(7) < lengths[:, None]).long()
    assert int(mask.sum()) == 2 * KINDS["deberta-v2"]["position_buckets"]
    batch = {"input_ids": torch.randint(4, 300, mask.shape) * mask, "attention_mask": mask}
    packing, _ = prepare(model, batch_of(3))
    stock, packed = score(model, [batch]), score(model, [batch], packing=packing)
    assert [row.score for row in packed.rows] == pytest.approx([row.score for row in stock.rows], rel=1e-5)


@pytest.mark.parametrize("recomputes", [False, True])
def test_masks_follow_the_seed_also_where_activations_are_computed_again(recomputes):
    model = adapted("deberta-v2", "all-linear")
    batch = batch_of(9)
    packing, how = prepare(model, batch, recomputes=True)
    assert how == "packed"
    loss = assert_same_when_repeated(model, batch, packing, recomputes)
    torch.manual_seed(6)
    with packing.over(batch):
        assert float(gradients(model, batch)[0]) != float(loss)


def test_every_dropout_is_ours_that_of_the_attention_as_well():
    model, batch = adapted("mpnet"), batch_of(9)
    packing, _ = prepare(model, batch)
    model.train()
    with packing.over(batch) as layout, torch.profiler.profile() as profile:
        model(**batch).loss.backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    assert not any("bernoulli" in name or name == "aten::dropout" for name in calls)
    embeddings, layer, head = 1, len(layout.groups) + 2, 2
    assert len(layout.groups) > 1 and calls["_Dropout"] == embeddings + 3 * layer + head


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "roformer"])  # transformers' first DeBERTa knows no bf16
def test_mixed_precision_is_packed_as_well(kind):
    model, batch = adapted(kind), batch_of(9)
    exact, expected = gradients(model.eval(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        packing, how = prepare(model, batch_of(3))
        assert how == FIRST
        with packing.over(batch):
            value, found = gradients(model, batch)
    assert float(value) == pytest.approx(float(exact), rel=2e-2)
    off = sum(float((one - expected[name]).square().sum()) for name, one in found.items())
    assert off < 0.1**2 * sum(float(one.square().sum()) for one in expected.values())


def test_everything_is_put_back_also_after_an_exception():
    model, batch = adapted("mpnet"), batch_of(5)
    packing, _ = prepare(model, batch)

    def state():
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        return hooks, [module for module in model.modules() if "forward" in vars(module)], list(model.named_modules())

    before = state()
    with pytest.raises(ZeroDivisionError), packing.over(batch):
        assert state() != before
        model(**batch)
        raise ZeroDivisionError
    assert state() == before


# ---- what another model's code might do


def altered(forward):
    """MPNet, with other code in its attentions."""
    model = bare("mpnet")
    for layer in model.mpnet.encoder.layer:
        attention = layer.attention.attn
        kind = type(attention)
        attention.__class__ = type("OtherAttention", (kind,), {"forward": forward(kind.forward)})
    return model


def refused(model, batch=None):
    packing, how = prepare(model, batch or batch_of(3))
    assert packing is None and how.startswith(
        "padded: mpnet does not use transformers' attention interface; by its own"
    )
    return how


def test_an_attention_that_works_on_its_result_is_left_alone():
    """Its projection is not its end. (In evaluation, as in the trial, dropout returns what it is given.)"""
    model = altered(lambda stock: lambda self, *a, **k: (self.dropout(stock(self, *a, **k)[0]),))
    assert "projects what it has made" in refused(model)


def test_an_attention_that_reads_its_tokens_otherwise_is_found_out():
    model = altered(lambda stock: lambda self, x, *a, **k: (stock(self, x, *a, **k)[0] + x.mean(1, keepdim=True),))
    refused(model)


def test_layers_that_are_given_different_things_are_found_out():
    model = bare("mpnet")
    last = model.mpnet.encoder.layer[-1]

    def forward(self, hidden, mask=None, position_bias=None, **options):
        return type(self).forward(self, hidden, mask, 3 * position_bias, **options)

    last.forward = types.MethodType(forward, last)
    assert "differ" in refused(model)


def test_rows_that_are_padded_on_the_left_are_left_alone():
    tokenizer = backbone("tiny:roberta")[1]
    tokenizer.padding_side = "left"
    batch = {**inputs(tokenizer, 3), "labels": torch.arange(3) % 2}
    assert "padded on the right" in refused(bare("mpnet"), batch)
