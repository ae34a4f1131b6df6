"""VeRA and Tied-LoRA against plain float64 references."""

import pytest
import torch
from models import backbone, inputs, method
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_drop.config import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods import get_method
from lora_drop.methods.base import count_parameters, trainable

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
    ("name", "expected"), [("vera", 24 * (512 + 768)), ("tied_lora", 768 * 56 + 56 * 1536 + 12 * (56 + 1536))]
)
def test_parameter_counts_of_the_paper_on_roberta_base(name, expected):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", num_labels=2))
    counted = count_parameters(get_method(name).build(model, MethodConfig(name=name), 0, None))
    assert counted.adapter == expected
    assert counted.head == 592_130


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
        expected = x.double() @ (module.base.weight.double() + 2.0 * update[rows]).T + module.base.bias.double()
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
    get_method(name).save(model, tmp_path)
    loaded = get_method(name).load(backbone()[0], tmp_path)
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
    get_method("tied_lora").save(model, tmp_path)
    with pytest.raises(UserError, match="another model"):
        get_method("tied_lora").load(backbone("tiny:bert")[0], tmp_path)
    (tmp_path / "tied_lora.json").unlink()
    with pytest.raises(UserError, match="no readable Tied-LoRA"):
        get_method("tied_lora").load(backbone()[0], tmp_path)
