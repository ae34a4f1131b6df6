"""Sparse Adapter, VeRA and Tied-LoRA against plain float64 references."""

import math

import pytest
import torch
from models import backbone, inputs, method
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods.base import count_parameters, trainable
from lora_drop.methods.sparse_adapter import snip_scores
from lora_drop.pruning.selection import Layers, Selection
from lora_drop.registry import METHODS

QUERY = "roberta.encoder.layer.{}.attention.self.query"
VALUE = "roberta.encoder.layer.{}.attention.self.value"


def randomised(name, **settings):
    model, tokenizer = backbone()
    model = method(name, model, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval(), tokenizer


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vera", 24 * (512 + 768)), ("tied_lora", 768 * 56 + 56 * 1536 + 12 * (56 + 1536)), ("sparse_adapter", 147_456)],
)
def test_parameter_counts_of_the_paper_on_roberta_base(name, expected):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", num_labels=2))
    counted = METHODS.get(name).count(METHODS.get(name).build(model, MethodConfig(name=name), 0, None))
    assert counted.adapter == expected
    assert counted.head == 592_130


SHAPES = {
    "roberta-base": ("roberta", {}, 12),
    "roberta-large": (
        "roberta",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        24,
    ),
    "llama-2-7b": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}, 32),
}


def counted(shape, name, selection=None, **settings):
    kind, sizes, _ = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, num_labels=2, **sizes))
    config = MethodConfig(name=name, **settings)
    return METHODS.get(name).count(METHODS.get(name).build(model, config, 0, selection)).adapter


def retained(shape, query, value):
    layers = range(SHAPES[shape][2])
    kept = {"query": query, "value": value}
    return Selection(
        "threshold",
        0.9,
        True,
        {name: Layers(tuple(layers[-count:]), tuple(layers[:-count]), 0.9) for name, count in kept.items()},
        0,
    )


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ("roberta-base", 8, 294_912),
        ("roberta-large", 8, 786_432),
        ("llama-2-7b", 8, 4_194_304),
        ("llama-2-7b", 16, 8_388_608),
    ],
)
def test_lora_counts_of_the_paper(shape, rank, expected):
    assert counted(shape, "lora", rank=rank) == expected


@pytest.mark.parametrize(
    ("shape", "query", "value", "expected"),
    [
        ("roberta-base", 5, 7, 172_032),  # (5 + 7 + 2) · 2 · 768 · 8
        ("roberta-large", 10, 13, 25 * 2 * 1024 * 8),
        ("llama-2-7b", 15, 17, 34 * 2 * 4096 * 8),
    ],
)
def test_lora_drop_counts_are_the_retained_pairs_and_a_shared_one_each(shape, query, value, expected):
    assert counted(shape, "lora_drop", retained(shape, query, value)) == expected


def test_adalora_starts_with_one_and_a_half_times_loras_rank():
    assert counted("roberta-base", "adalora") == 24 * (12 * (768 + 768) + 12)


@pytest.mark.parametrize("layer", [0, 3])
def test_tied_lora_equals_its_formula_in_float64(layer):
    model, _ = randomised("tied_lora", rank=4, alpha=8)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    for name, rows in ((QUERY, slice(0, 32)), (VALUE, slice(32, 64))):
        module = model.get_submodule(name.format(layer))
        first = model.get_submodule(QUERY.format(0)).tied
        a, b = first.A.double(), first.B.double()
        u, v = module.vectors.u.double(), module.vectors.v.double()
        update = torch.diag(v) @ b @ torch.diag(u) @ a  # ΔW of the fused matrix
        expected = (
            x.double() @ (module.base_layer.weight.double() + 2.0 * update[rows]).T + module.base_layer.bias.double()
        )
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 3])
def test_vera_equals_its_formula_in_float64(layer):
    model, _ = randomised("vera", rank=16)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    module = model.base_model.model.get_submodule(VALUE.format(layer))
    a, b = module.vera_A["default"][:, :32].double(), module.vera_B["default"][:32].double()
    d, out = module.vera_lambda_d["default"].double(), module.vera_lambda_b["default"].double()
    update = torch.diag(out) @ b @ torch.diag(d) @ a
    expected = x.double() @ (module.base_layer.weight.double() + update).T + module.base_layer.bias.double()
    torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vera", "tied_lora"])
def test_training_starts_at_the_pretrained_model(name):
    plain, tokenizer = backbone()
    batch = inputs(tokenizer)
    expected = logits(plain, batch)
    torch.testing.assert_close(logits(method(name, backbone()[0]), batch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vera", "tied_lora"])
def test_saved_and_loaded_it_gives_the_same_logits(name, tmp_path):
    model, tokenizer = randomised(name, rank=8, seed=3)
    METHODS.get(name).save(model, tmp_path)
    loaded = METHODS.get(name).load(backbone()[0], tmp_path)
    assert torch.equal(logits(loaded, inputs(tokenizer)), logits(model, inputs(tokenizer)))
    assert count_parameters(loaded) == count_parameters(model)


def test_tied_lora_ties_the_pair_and_not_the_vectors():
    model, _ = randomised("tied_lora", rank=4)
    queries = [model.get_submodule(QUERY.format(layer)) for layer in range(4)]
    values = [model.get_submodule(VALUE.format(layer)) for layer in range(4)]
    assert len({id(module.tied) for module in (*queries, *values)}) == 1
    assert [query.vectors is value.vectors for query, value in zip(queries, values, strict=True)] == [True] * 4
    assert len({id(module.vectors) for module in queries}) == 4


def test_damaged_tied_lora_is_refused(tmp_path):
    model, _ = randomised("tied_lora", rank=4)
    METHODS.get("tied_lora").save(model, tmp_path)
    with pytest.raises(UserError, match="another model"):
        METHODS.get("tied_lora").load(backbone("tiny:bert")[0], tmp_path)
    (tmp_path / "tied_lora.json").unlink()
    with pytest.raises(UserError, match="no readable Tied-LoRA"):
        METHODS.get("tied_lora").load(backbone()[0], tmp_path)


def labelled(tokenizer, count=7):
    return {**inputs(tokenizer, count), "labels": torch.arange(count) % 2}


def pruned(keep_ratio=0.5):
    plain, tokenizer = backbone()
    model = method("sparse_adapter", plain, keep_ratio=keep_ratio)
    before = {name: weight.detach().clone() for name, weight in trainable(model)}
    batch = labelled(tokenizer)
    parts = [{key: value[start : start + 3] for key, value in batch.items()} for start in range(0, 7, 3)]
    METHODS.get("sparse_adapter").prepare(model, parts)
    return model, batch, before


def test_snip_keeps_the_weights_of_highest_score_in_float64():
    model, batch, before = pruned()
    reference = method("sparse_adapter", backbone()[0]).double().eval()
    with torch.no_grad():
        for name, weight in trainable(reference):
            weight.copy_(before[name])
    (reference(**batch).loss * 7).backward()
    names = [name for name, _ in trainable(reference) if "lora_" in name]
    found = dict(trainable(reference))
    scores = torch.cat([(found[name] * found[name].grad).abs().flatten() for name in names])
    kept = torch.cat([dict(trainable(model))[name].mask.flatten() for name in names])
    assert int(kept.sum()) == len(kept) // 2
    assert scores[kept].min() >= scores[~kept].max() * (1 - 1e-3)


def test_snip_counts_rows_where_each_has_several_labels():
    plain, tokenizer = backbone()
    plain.config.problem_type = "multi_label_classification"
    model = method("sparse_adapter", plain).eval()
    batch = inputs(tokenizer, 7)
    batch["labels"] = torch.tensor([[0.0, 1.0], [1.0, 1.0]])[torch.arange(7) % 2][:, : plain.config.num_labels]
    parts = [{key: value[start : start + 3] for key, value in batch.items()} for start in range(0, 7, 3)]
    weights = {name: weight for name, weight in trainable(model) if "lora_" in name}
    for name, scores in snip_scores(model, weights, parts).items():
        (expected,) = torch.autograd.grad(model(**batch).loss * 7, weights[name])
        torch.testing.assert_close(scores, (weights[name] * expected).abs().detach(), rtol=1e-3, atol=1e-7)


def test_pruned_weights_stay_zero_under_adamw_with_decay():
    model, batch, _ = pruned(keep_ratio=0.3)
    weights = {name: weight for name, weight in trainable(model) if "lora_" in name}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.1)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    for _ in range(20):
        optimizer.zero_grad()
        model.train()(**batch).loss.backward()
        assert all((weight.grad[~weight.mask] == 0).all() for weight in weights.values())
        optimizer.step()
    assert all((weight[~weight.mask] == 0).all() for weight in weights.values())
    assert (
        sum(int((weight != start[name]).sum()) for name, weight in weights.items())
        == METHODS.get("sparse_adapter").count(model).adapter
    )


def test_sparse_adapter_is_a_plain_peft_adapter_that_stays_sparse(tmp_path):
    from peft import PeftModel

    model, batch, _ = pruned()
    METHODS.get("sparse_adapter").save(model, tmp_path)
    batch.pop("labels")
    assert torch.equal(logits(PeftModel.from_pretrained(backbone()[0], str(tmp_path)), batch), logits(model, batch))
    loaded = METHODS.get("sparse_adapter").load(backbone()[0], tmp_path)
    assert METHODS.get("sparse_adapter").count(loaded) == METHODS.get("sparse_adapter").count(model)
    loaded.train()(**batch, labels=torch.zeros(7, dtype=torch.long)).loss.backward()
    assert all((weight.grad[~weight.mask] == 0).all() for name, weight in trainable(loaded) if "lora_" in name)
    (tmp_path / "sparse_adapter.safetensors").unlink()
    with pytest.raises(UserError, match="which weights are pruned"):
        METHODS.get("sparse_adapter").load(backbone()[0], tmp_path)


@pytest.mark.parametrize("name", ["tied_lora", "vera", "sparse_adapter", "lora"])
def test_another_seed_gives_other_initial_weights(name):
    def weights(seed):
        model = method(name, backbone()[0], seed=seed, rank=8)
        return torch.cat(
            [
                each.detach().flatten()
                for key, each in model.state_dict().items()
                if any(part in key for part in ("tied.A", "vera_A", "lora_A"))
            ]
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_tied_lora_keeps_its_scaling_and_drops_inputs_in_training(tmp_path):
    model, tokenizer = randomised("tied_lora", rank=4, alpha=20, dropout=0.5)
    METHODS.get("tied_lora").save(model, tmp_path)
    loaded = METHODS.get("tied_lora").load(backbone()[0], tmp_path)
    assert torch.equal(logits(loaded, inputs(tokenizer)), logits(model, inputs(tokenizer)))
    module, x = model.get_submodule(QUERY.format(0)), torch.randn(2, 5, 32)
    assert torch.equal(module.eval()(x), module(x)) and not torch.equal(module.train()(x), module(x))
    assert method("tied_lora", backbone()[0], rank=4).get_submodule(QUERY.format(0)).scaling == 2  # alpha 2r, as LoRA's


@pytest.mark.parametrize("name", ["lora", "adalora", "vera", "sparse_adapter", "tied_lora"])
def test_dropout_drops_inputs_of_the_update_alone_and_only_in_training(name):
    """Of an input with a single element, the update is 0 or, to make up for that, 1 / (1 − p) times as large."""
    model, _ = randomised(name, rank=8, dropout=0.75)
    module = dict(model.named_modules())[("" if name == "tied_lora" else "base_model.model.") + QUERY.format(1)]
    x = torch.zeros(200, 32).index_fill(1, torch.tensor(5), 1.0)
    with torch.no_grad():
        plain, whole = module.base_layer(x), module.eval()(x)
        update, dropped = whole - plain, module.train()(x) - plain
    assert update.abs().max() > 1e-3
    kept = dropped.abs().sum(1) > 1e-6
    assert 20 < int(kept.sum()) < 80  # a quarter of 200
    torch.testing.assert_close(dropped[kept], 4 * update[kept], rtol=1e-3, atol=1e-5)


def test_tied_lora_starts_as_a_lora():
    """Kaiming's uniform with a = √5: within ±1/√inputs."""
    tied = method("tied_lora", backbone()[0], rank=56).get_submodule(QUERY.format(0)).tied
    bound = 1 / math.sqrt(tied.A.shape[1])
    assert 0.95 * bound < tied.A.abs().max() <= bound


def test_sparse_adapter_draws_both_halves_alike_and_remembers_its_ratio(tmp_path):
    model = method("sparse_adapter", backbone()[0], keep_ratio=0.3)
    for half in ("lora_A", "lora_B"):
        values = torch.cat([each.detach().flatten() for name, each in trainable(model) if half in name])
        assert float(values.std()) == pytest.approx(0.02, rel=0.1) and abs(float(values.mean())) < 0.002
    assert METHODS.get("sparse_adapter").examples == 320
    batch = inputs(backbone()[1])
    METHODS.get("sparse_adapter").prepare(model, [{**batch, "labels": torch.arange(7) % 2}])
    METHODS.get("sparse_adapter").save(model, tmp_path)
    loaded = METHODS.get("sparse_adapter").load(backbone()[0], tmp_path)
    assert METHODS.get("sparse_adapter").count(loaded) == METHODS.get("sparse_adapter").count(model)
