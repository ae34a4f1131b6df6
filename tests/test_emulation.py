"""Half-precision products computed in fp32, against float64 and against torch's own."""

import pytest
import torch
from test_training import Interrupt, same, train
from torch.nn import functional

from lora_drop.training import products
from lora_drop.training.emulation import Emulation
from lora_drop.training.products import STOCK, Products, find_products

HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""The types, and the largest relative error of rounding to them."""
half_types = pytest.mark.parametrize("half", HALVES, ids=["bf16", "fp16"])
CALLS = {
    "mm": ([(5, 24), (24, 7)], torch.mm),
    "linear": ([(2, 5, 24), (7, 24), (7,)], functional.linear),
    "addmm": ([(5, 7), (5, 24), (24, 7)], lambda *given: torch.addmm(*given, alpha=0.5)),
    "bmm": ([(3, 5, 24), (3, 24, 7)], torch.bmm),
    "baddbmm": ([(3, 5, 7), (3, 5, 24), (3, 24, 7)], lambda *given: torch.baddbmm(*given, beta=2, alpha=0.5)),
    "einsum": ([(3, 5, 24), (3, 7, 24)], lambda x, y: torch.einsum("bik,bjk->bij", x, y)),
    "conv2d": ([(2, 3, 8, 8), (6, 3, 4, 4), (6,)], lambda *given: functional.conv2d(*given, stride=4)),
}


@half_types
@pytest.mark.parametrize("name", CALLS)
def test_products_and_gradients_are_those_of_float64_rounded(name, half):
    shapes, call = CALLS[name]
    torch.manual_seed(0)
    given = [torch.randn(shape).to(half).requires_grad_() for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    with Emulation(half):
        out = call(*given)
        weights = torch.randn_like(out)
        found = torch.autograd.grad((out * weights).sum(), given)
    expected = call(*exact)
    gradients = torch.autograd.grad((expected * weights.double()).sum(), exact)
    for one, other in zip((out, *found), (expected, *gradients), strict=True):
        assert one.dtype == half and one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=HALVES[half], atol=1e-5)


@half_types
def test_a_product_in_place_changes_its_tensor(half):
    torch.manual_seed(0)
    out, x, y = (torch.randn(shape).to(half) for shape in ((5, 7), (5, 24), (24, 7)))
    expected = (out.float() + 0.5 * (x.float() @ y.float())).to(half)
    with Emulation(half):
        assert out.addmm_(x, y, alpha=0.5) is out
    torch.testing.assert_close(out, expected, rtol=2 * HALVES[half], atol=0)


@half_types
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_those_of_float64(masked, half):
    torch.manual_seed(0)
    given = [torch.randn(2, 3, 9, 8).to(half).requires_grad_() for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    mask = torch.zeros(2, 1, 9, 9).masked_fill(torch.rand(2, 1, 9, 9) < 0.3, -100.0) if masked else None
    with Emulation(half):
        out = functional.scaled_dot_product_attention(*given, attn_mask=None if mask is None else mask.to(half))
        found = torch.autograd.grad(out.float().square().sum(), given)
    expected = functional.scaled_dot_product_attention(*exact, attn_mask=None if mask is None else mask.double())
    gradients = torch.autograd.grad(expected.square().sum(), exact)
    for one, other in zip((out, *found), (expected, *gradients), strict=True):
        assert one.dtype == half
        torch.testing.assert_close(one.double(), other, rtol=8 * HALVES[half], atol=8 * HALVES[half])


def test_other_types_are_left_to_torch():
    torch.manual_seed(0)
    x, y = torch.randn(5, 24), torch.randn(24, 7)
    with Emulation(torch.bfloat16):
        assert torch.equal(x @ y, torch.mm(x, y)) and (x @ y).dtype == torch.float32
        assert (x.half() @ y.half()).dtype == torch.float16
        assert (x.bfloat16() + 1).dtype == torch.bfloat16


def test_products_are_emulated_where_the_cpu_lacks_them_and_nobody_asked_for_the_stock_ones(monkeypatch):
    layer, cpu = torch.nn.Linear(8, 8), torch.device("cpu")
    monkeypatch.setattr(products, "multiplies", lambda half: half == torch.float16)
    assert find_products(layer, cpu, "auto", torch.bfloat16) == Products(emulated=torch.bfloat16)
    assert find_products(layer.bfloat16(), cpu, "auto", torch.bfloat16) == Products(emulated=torch.bfloat16)
    assert find_products(layer, cpu, "auto", torch.float16) == STOCK
    assert find_products(layer, cpu, "auto", None) == STOCK
    assert find_products(layer, cpu, "stock", torch.bfloat16) == STOCK
    assert find_products(layer, torch.device("cuda"), "auto", torch.bfloat16) == STOCK


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["auto", "never"])
def test_a_training_with_emulated_products_is_torchs_up_to_rounding_and_continues_exactly(
    packing, tmp_path, monkeypatch
):
    monkeypatch.setattr(products, "multiplies", lambda half: False)
    emulated, outcome = train(tmp_path / "a", precision="bf16", packing=packing)
    assert outcome.computed.endswith("half-precision products in fp32, rounded")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", precision="bf16", packing=packing, report=Interrupt(4))
    resumed, _ = train(tmp_path / "b", precision="bf16", packing=packing)
    assert same(emulated, resumed)
    _, plain = train(tmp_path / "c", precision="bf16", packing=packing, products="stock")
    assert "rounded" not in plain.computed
    assert outcome.losses == pytest.approx(plain.losses, rel=2e-2)
