"""Products with frozen weights, and the choice of the fastest that is exact."""

import os
import subprocess
import sys

import pytest
import torch
from test_training import Interrupt, same, train
from torch.nn import functional

from lora_drop.training import products, way
from lora_drop.training.packing.frozen import (
    Frozen,
    Half,
    frozen_forward,
    frozen_layers,
    multiplies,
)
from lora_drop.training.products import STOCK, Products, choose, find_products


def slowly(way, times=30):
    """The same numbers, late."""

    def late(x, weight):
        for _ in range(times - 1):
            way(x, weight)
        return way(x, weight)

    return late


def rounded(x, weight):
    """What oneDNN makes of the switch on hardware that multiplies bf16 faster."""
    return functional.linear(x.bfloat16(), weight.bfloat16()).float()


SLOW = slowly(functional.linear)


def test_the_faster_ways_are_taken():
    assert choose(64, 96, switched=functional.linear, operator=functional.linear, stock=SLOW) == Products(True, True)


def test_a_faster_way_that_rounds_to_bf16_is_not_taken():
    assert choose(64, 96, switched=rounded, operator=functional.linear, stock=SLOW) == Products(False, True)


def test_a_faster_way_with_an_error_in_one_row_is_not_taken():
    def wrong(x, weight):
        out = functional.linear(x, weight)
        out[3] *= 1.001
        return out

    assert choose(64, 96, switched=functional.linear, operator=wrong, stock=SLOW) == Products(True, False)


def test_a_torch_without_the_switch_has_the_operator_alone(monkeypatch):
    monkeypatch.setattr(products, "has_switch", lambda: False)
    assert choose(64, 96, operator=functional.linear, stock=SLOW) == Products(False, True)


def test_a_slower_way_is_not_taken():
    assert choose(64, 96, switched=SLOW, operator=SLOW, stock=functional.linear) == STOCK


@pytest.mark.skipif(not products.has_switch(), reason="this version of torch has no switch")
def test_the_switch_is_as_before_also_after_an_exception():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(RuntimeError), Products(switched=True).applied():
        assert settings.fp32_precision == "bf16"
        raise RuntimeError
    with STOCK.applied():
        assert settings.fp32_precision == before
    assert settings.fp32_precision == before


def test_the_choice_is_kept_for_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "choose", lambda inputs, outputs: Products(operator=True))
    layer = torch.nn.Linear(240, 400)
    products._remembered.cache_clear()
    assert find_products(layer, torch.device("cpu")) == Products(operator=True)
    (kept,) = (tmp_path / "products").glob("*.json")
    products._remembered.cache_clear()
    monkeypatch.setattr(products, "choose", lambda inputs, outputs: STOCK)  # it is not tried again
    assert find_products(layer, torch.device("cpu")) == Products(operator=True)
    kept.write_text("{", encoding="utf-8")  # a damaged file is made anew
    products._remembered.cache_clear()
    assert find_products(layer, torch.device("cpu")) == STOCK
    products._remembered.cache_clear()


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this version of torch says little of the CPU")
def test_another_cpu_of_the_same_name_chooses_for_itself(tmp_path, monkeypatch):
    """Virtual machines share a host name, and home directories are shared by machines."""
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))
    layer, facts = torch.nn.Linear(240, 400), torch.cpu.get_capabilities()
    for found, cache in ((Products(operator=True), 32768), (STOCK, 49152)):
        monkeypatch.setattr(products, "choose", lambda inputs, outputs, found=found: found)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda cache=cache: {**facts, "l1d_cache_size": cache})
        products._remembered.cache_clear()
        assert find_products(layer, torch.device("cpu")) == found
    assert len(list((tmp_path / "products").glob("*.json"))) == 2
    products._remembered.cache_clear()


def test_stock_products_on_request_and_off_the_cpu():
    layer = torch.nn.Linear(24, 40)
    assert find_products(layer, torch.device("cpu"), "stock") == STOCK
    assert find_products(layer, torch.device("cuda")) == STOCK


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (1, 1, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ordered", [True, False])  # False: as on a GPU
def test_a_frozen_layer_has_the_product_and_gradient_of_float64(shape, bias, ordered):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x = torch.randn(*shape, requires_grad=True)
    assert list(frozen_layers(layer)) == [layer]
    frozen = Frozen(layer, ordered)
    out = frozen_forward(layer, frozen, Half(), x)
    weights = torch.randn_like(out)
    (found,) = torch.autograd.grad((out * weights).sum(), x)
    exact = functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert out.shape == exact.shape
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), weights.double() @ layer.weight.double(), rtol=1e-6, atol=1e-6)


def test_half_precision_without_instructions_has_a_reason_to_be_slower(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert way.why_slow(cpu, "fp32") == ""
    for name, half in way.HALF.items():
        assert (name in way.why_slow(cpu, name)) is not multiplies(half)
    for capability, reasons in {(7, 5): ["bf16"], (8, 0): []}.items():  # a T4, an A100
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, known=capability: known)
        found = [precision for precision in ("fp32", "fp16", "bf16") if way.why_slow(gpu, precision)]
        assert found == reasons


@pytest.mark.skipif(not multiplies(torch.bfloat16), reason="oneDNN has no products of bf16 for this CPU")
@pytest.mark.parametrize("ordered", [True, False])
def test_a_frozen_layer_in_bf16_is_that_of_autocast(ordered):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40).requires_grad_(False)
    x = torch.randn(3, 5, 24, requires_grad=True)
    frozen, half = Frozen(layer, ordered), Half()
    with torch.autocast("cpu", torch.bfloat16):
        stock, ours = layer(x), frozen_forward(layer, frozen, half, x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, stock, rtol=1e-2, atol=1e-2)
    gradients = [torch.autograd.grad(out.float().sum(), x)[0] for out in (stock, ours)]
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_weight_that_changes_is_read_again(ordered):
    layer = torch.nn.Linear(8, 8).requires_grad_(False)
    frozen, x = Frozen(layer, ordered), torch.randn(4, 8)
    first = frozen.forward(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(frozen.forward(x), 2 * first - layer.bias)


def test_what_is_trained_or_no_fp32_is_not_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8).bfloat16())
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    assert list(frozen_layers(model)) == [model[0]]


def test_a_tensor_is_rounded_once_until_it_changes():
    half, x = Half(), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = half(x)
        assert half(x) is first
        x.add_(1)
        assert torch.equal(half(x), x.bfloat16())
    assert half(x) is x


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_by_onednn_give_the_same_bits_again_and_after_an_interruption(precision, tmp_path, monkeypatch):
    monkeypatch.setattr(way, "find_products", lambda *_: Products(switched=products.has_switch(), operator=True))
    undisturbed, outcome = train(tmp_path / "a", precision=precision)
    assert "fp32 products by oneDNN" in outcome.computed and outcome.computed.startswith("packed")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", precision=precision, report=Interrupt(4))
    resumed, _ = train(tmp_path / "b", precision=precision)
    assert same(undisturbed, resumed)


@pytest.mark.slow
def test_training_with_products_by_onednn_is_that_of_the_stock_ones(tmp_path, monkeypatch):
    stock, first = train(tmp_path / "stock", products="stock")
    monkeypatch.setattr(way, "find_products", lambda *_: Products(switched=products.has_switch(), operator=True))
    ours, second = train(tmp_path / "ours")
    assert first.computed != second.computed
    assert second.losses == pytest.approx(first.losses, rel=1e-4)
    assert all(torch.allclose(stock[name], ours[name], atol=1e-4) for name in stock)


TWO_CHOICES = """
import sys, time
from lora_drop.training import products
from lora_drop.training.products import Products

def choose(inputs, outputs):
    time.sleep(0.5)
    return Products(operator=sys.argv[1] == "operator")

products.choose = choose
print(products._remembered(240, 400, 1))
"""


def test_processes_that_begin_together_choose_alike(tmp_path):
    """A timing may go either way, and the bits of a run follow from the choice."""
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_CHOICES, choice],
            env={**os.environ, "LORA_DROP_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for choice in ("operator", "stock")
    ]
    one, two = (process.communicate()[0] for process in begun)
    assert one and one == two
