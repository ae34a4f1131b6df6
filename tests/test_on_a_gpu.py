"""What a GPU computes, against float64 and against the stock way. Skipped where there is none."""

import importlib.util

import pytest
import torch
from architectures import ALL, make_checkpoint
from commands import call
from datasets import Dataset
from models import backbone, method, trained_lora
from test_packed_attention import layout_of, plain_attention
from test_packing import gradients, labelled
from test_training import half_trained, train
from transformers import default_data_collator

from lora_drop.config.schema import TrainConfig
from lora_drop.registry import METHODS
from lora_drop.training.packing import Layout, prepare
from lora_drop.training.packing.attention import Scoring, varlen_attention
from lora_drop.training.packing.frozen import frozen_layers
from lora_drop.training.trainer import fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = torch.device("cuda")
LENGTHS = [9, 8, 8, 3, 2, 1, 1]


def on_the_gpu(lengths):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return Layout(mask.to(GPU), None, "all")


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_flash_attention_equals_the_plain_form(causal, key_heads, window):
    torch.manual_seed(0)
    heads = (4, key_heads, key_heads)
    given = [torch.randn(sum(LENGTHS), count, 16).bfloat16().requires_grad_() for count in heads]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = plain_attention(*exact, layout_of(LENGTHS).lengths, 0.3, causal, window)
    out = varlen_attention(*(one.to(GPU) for one in given), on_the_gpu(LENGTHS), Scoring(0.3, None, causal, window))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.cpu().double(), expected, rtol=2e-2, atol=2e-2)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad((out.double() * direction.to(GPU)).sum(), given)
    for one, two in zip(found, torch.autograd.grad((expected * direction).sum(), exact), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=4e-2, atol=6e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_fp32_equals_the_plain_form(causal):
    torch.manual_seed(0)
    given = [torch.randn(sum(LENGTHS), heads, 16, requires_grad=True) for heads in (4, 2, 2)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = plain_attention(*exact, LENGTHS, 0.3, causal)
    out = varlen_attention(*(one.to(GPU) for one in given), on_the_gpu(LENGTHS), Scoring(0.3, causal=causal))
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad((out.double() * direction.to(GPU)).sum(), given)
    for one, two in zip(found, torch.autograd.grad((expected * direction).sum(), exact), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
def test_loss_and_gradients_are_those_of_the_stock_path(name, half):
    model, tokenizer = trained_lora(name)
    model.to(GPU)
    batch = {key: value.to(GPU) for key, value in labelled(tokenizer).items()}
    frozen = frozen_layers(model) if half else {}
    with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
        packing, how = prepare(model, batch, frozen=frozen)
        assert packing is not None and how.startswith("packed, last layer only"), how
        model.eval()
        stock, expected = gradients(model, batch)
        with packing.over(batch):
            value, found = gradients(model, batch)
    near = 5e-2 if half else 1e-4
    assert float(value) == pytest.approx(float(stock), rel=near)
    assert found.keys() == expected.keys()
    assert distance(found.values(), expected.values()) < near


def distance(some, others):
    """Of tensors, relative to the others' norm."""
    pairs = [(one.double(), two.double()) for one, two in zip(some, others, strict=True)]
    return (
        float(sum((one - two).square().sum() for one, two in pairs) / sum(two.square().sum() for _, two in pairs))
        ** 0.5
    )


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
def test_replayed_layers_give_the_numbers_of_the_direct_ones(name, half):
    """For batches of several sizes, in any order, each with numbers of its own."""
    model, tokenizer = trained_lora(name)
    model.to(GPU)
    given = [{key: value.to(GPU) for key, value in labelled(tokenizer, count).items()} for count in (7, 3, 7, 5)]
    given[2]["input_ids"] = given[2]["input_ids"].flip(0)
    given[2]["attention_mask"] = given[2]["attention_mask"].flip(0)
    frozen = frozen_layers(model) if half else {}
    with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
        packing, how = prepare(model, given[0], frozen=frozen, replays=True)
        assert how.endswith("; layers replayed as CUDA graphs in training")
        model.eval()
        for batch in given * 2:
            with packing.over(batch):
                stock, expected = gradients(model, batch)
            with packing.over(batch, learns=True):
                value, found = gradients(model, batch)
            assert float(value) == pytest.approx(float(stock), rel=2e-2 if half else 1e-4)
            assert distance(found.values(), expected.values()) < (5e-2 if half else 1e-4)


def only_layers_drop(model):
    """Train mode, in which nothing outside the layers draws."""
    for name, module in model.train().named_modules():
        if isinstance(module, torch.nn.Dropout) and ".layer." not in name:
            module.p = 0.0
    return model


def test_layers_that_cannot_be_recorded_are_computed_directly(monkeypatch):
    model, tokenizer = trained_lora("tiny:bert")
    model.to(GPU)
    layer = model.get_submodule("base_model.model.bert.encoder.layer.1.output")
    batch = {key: value.to(GPU) for key, value in labelled(tokenizer).items()}
    with monkeypatch.context() as broken:
        waits = lambda *given: type(layer).forward(layer, *given) + 0 * float(given[0].mean())  # noqa: E731
        broken.setattr(layer, "forward", waits)
        packing, how = prepare(model, batch, replays=True)
        assert how.startswith("packed") and packing.replay is None
        only_layers_drop(model)
        with packing.over(batch, learns=True):
            first, second = (float(gradients(model, batch)[0]) for _ in range(2))
        assert first != second  # dropout is drawn as ever
    torch.cuda.empty_cache()
    packing, _ = prepare(model, batch, replays=True)
    assert packing.replay is not None


def test_replayed_layers_draw_new_dropout_each_time():
    model, tokenizer = trained_lora("tiny:bert")
    model.to(GPU)
    batch = {key: value.to(GPU) for key, value in labelled(tokenizer).items()}
    packing, _ = prepare(model, batch, replays=True)
    only_layers_drop(model)
    assert packing.replay is not None
    losses = set()
    for _ in range(4):
        with packing.over(batch, learns=True):
            losses.add(float(model(**batch).loss.detach()))
    assert len(losses) == 4


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_a_replayed_training_is_that_of_the_direct_path(name):
    """Three optimizer steps in train mode, without dropout."""
    kept = []
    for learns in (True, False):
        model, tokenizer = trained_lora(name)
        model.to(GPU)
        batches = [{key: value.to(GPU) for key, value in labelled(tokenizer, count).items()} for count in (7, 3, 7)]
        packing, _ = prepare(model, batches[0], replays=True)
        assert packing.replay is not None
        for module in model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for batch in batches:
            with packing.over(batch, learns=learns):
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        kept.append([parameter.detach() for parameter in trained])
    assert distance(*kept) < 1e-4


def test_gradients_of_parts_of_a_batch_add_up(tmp_path):
    """They are computed directly: those of a replay lie where the next one's will."""
    whole, parts = (trained_on_the_gpu(tmp_path / str(size), size) for size in (8, 4))
    assert distance(parts, whole) < 1e-3


def trained_on_the_gpu(folder, at_a_time):
    model, tokenizer = backbone("tiny:bert")
    model = method("lora", model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = labelled(tokenizer, 16)
    rows = Dataset.from_dict({key: value.tolist() for key, value in batch.items()})
    settings = TrainConfig(epochs=2, batch_size=8, device_batch_size=at_a_time, learning_rate=1e-2)
    fit(METHODS.get("lora"), model.to(GPU), rows, default_data_collator, settings, folder, seed=0)
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def test_dropout_of_attention_drops_the_share_that_it_is_told_to():
    torch.manual_seed(0)
    tokens = 512
    ones = torch.ones(tokens, 4, 16, dtype=torch.bfloat16, device=GPU)
    out = varlen_attention(ones, ones, ones, on_the_gpu([tokens]), Scoring(0.3, dropout=0.5))
    assert float(out.float().mean()) == pytest.approx(1, abs=0.02)  # what is kept is doubled
    assert float(out.float().std()) > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:llama"])
def test_a_run_from_start_to_end(precision, backbone, tmp_path):
    keys = [f"train.precision={precision}", "train.epochs=2", "train.batch_size=8"]
    options = [part for key in keys for part in ("-o", key)]
    run = ["run", "--device", "cuda", "-c", "toy/toy-nli", "-b", backbone, "--limit-train", 64, "-d", tmp_path / "run"]
    assert call(*run, *options, "-q") == 0


def test_a_training_killed_on_a_cpu_continues_on_a_gpu(tmp_path):
    half_trained(tmp_path)
    weights, outcome = train(tmp_path, best=1, save_steps=7, device="cuda")
    assert (
        outcome.steps == 9 and outcome.kept_epoch == 1 and all(bool(each.isfinite().all()) for each in weights.values())
    )


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_run_on_a_backbone_in_4_bits(tmp_path):
    llama = next(one for one in ALL if one.model_type == "llama")
    backbone = make_checkpoint(tmp_path / "llama", llama)
    run = [
        "run",
        "--device",
        "cuda",
        "-c",
        "toy/toy-nli",
        "-b",
        backbone,
        "--limit-train",
        64,
        "-o",
        "train.max_length=64",
    ]
    assert call(*run, "-o", "quantization=nf4", "-o", "train.precision=bf16", "-d", tmp_path / "run", "-q") == 0
