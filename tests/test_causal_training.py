"""Training a decoder on completions: what the Trainer makes of our loss, our batches and our settings."""

import math

import pytest
import torch
from models import backbone

from lora_drop.config.schema import MethodConfig, TrainConfig
from lora_drop.data.completions import encode_pairs, pair_collator, token_loss
from lora_drop.evaluation.kinds import get_kind
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Source
from lora_drop.training.trainer import fit, warmup_steps

pytestmark = pytest.mark.slow


def train(folder, rows=48, epochs=1.0, smoothing=0.0, **settings):
    """Train a LoRA on a tiny decoder; returns its weights and what `fit` says."""
    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located, causal=True)
    task = TASKS.get("toy-nlg")
    lora = METHODS.get("lora")
    model = lora.build(load_model(located, task, 0, tokenizer), MethodConfig(), 0, None)
    encoded, _ = encode_pairs(task.load(Source(None), "train").select(range(rows)), tokenizer, 200)
    outcome = fit(
        lora,
        model,
        encoded,
        pair_collator(tokenizer),
        TrainConfig(epochs=epochs, batch_size=16, learning_rate=1e-2, select_epoch="last", **settings),
        folder,
        seed=0,
        loss=token_loss(smoothing),
    )
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}, outcome


def close(one, two, tolerance=1e-5):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulation_gives_the_training_of_the_whole_batch(tmp_path, smoothing):
    """Completions differ in length, so a mean of the means of parts would be another loss."""
    whole, first = train(tmp_path / "whole", smoothing=smoothing)
    split, second = train(
        tmp_path / "split", smoothing=smoothing, device_batch_size=3
    )  # 2 at a time: 16 has no divisor 3
    close(whole, split)
    assert first.epochs[0]["loss"] == pytest.approx(second.epochs[0]["loss"], rel=1e-5)


def test_a_smaller_last_batch_accumulates_as_well(tmp_path):
    whole, _ = train(tmp_path / "whole", rows=21)
    split, _ = train(tmp_path / "split", rows=21, device_batch_size=4)
    close(whole, split)


def test_the_loss_is_a_mean_over_tokens(tmp_path):
    _, outcome = train(tmp_path, rows=16)
    assert outcome.steps == 1 and outcome.epochs[0]["loss"] == pytest.approx(math.log(260), abs=0.1)


def test_checkpointing_of_activations_changes_nothing(tmp_path):
    plain, _ = train(tmp_path / "plain")
    saving, _ = train(tmp_path / "saving", gradient_checkpointing=True)
    close(plain, saving, 1e-6)


def test_smoothed_labels_of_a_classifier(tmp_path):
    model, tokenizer = backbone()
    batch = dict(tokenizer(["one", "two", "three"], padding=True, return_tensors="pt"))
    labels = torch.tensor([0, 1, 1])
    outputs = model.eval()(**batch)
    loss = get_kind(TASKS.get("toy-nli")).loss(0.2)
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(loss(outputs, labels, 3), expected)
    assert get_kind(TASKS.get("toy-nli")).loss(0.0) is None


def test_a_number_of_warmup_steps_is_at_most_half_of_all():
    assert warmup_steps(TrainConfig(warmup_ratio=0.1), 100) == 10
    assert warmup_steps(TrainConfig(warmup_steps=30), 100) == 30
    assert warmup_steps(TrainConfig(warmup_steps=500), 100) == 50
    assert warmup_steps(TrainConfig(warmup_steps=0), 100) == 0


def test_precision_is_used(tmp_path):
    plain, _ = train(tmp_path / "plain")
    bf16, _ = train(tmp_path / "bf16", precision="bf16")
    assert all(weight.dtype == torch.float32 for weight in bf16.values())
    assert not all(torch.equal(plain[name], bf16[name]) for name in plain)
