import os
import signal

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from models import backbone, method

from lora_drop.config import TrainConfig
from lora_drop.encoding import batches, collator, encode
from lora_drop.errors import UserError
from lora_drop.progress import Reporter
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source
from lora_drop.training import LengthGroups, fit, split_batch


@given(st.integers(1, 300), st.one_of(st.none(), st.integers(1, 64)), st.integers(1, 4))
def test_the_total_batch_is_exact(total, limit, devices):
    if total % devices:
        with pytest.raises(UserError, match="multiple"):
            split_batch(total, limit, devices)
        return
    per_device, accumulation = split_batch(total, limit, devices)
    assert per_device * accumulation * devices == total
    assert limit is None or per_device <= limit


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 3))
def test_every_epoch_visits_every_row_once(lengths, batch_size, seed):
    groups = LengthGroups(lengths, batch_size, seed)
    first = list(groups)
    assert sorted(first) == list(range(len(lengths)))
    if len(lengths) >= batch_size:
        assert max(lengths[index] for index in first[:batch_size]) == max(lengths) or len(lengths) % batch_size
    groups.set_epoch(1)
    assert sorted(groups) == sorted(first)
    groups.set_epoch(0)
    assert list(groups) == first


def test_batches_hold_rows_of_similar_length():
    lengths = torch.randint(1, 100, (3200,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LengthGroups(lengths, 32, 0))
    spreads = [
        max(chunk) - min(chunk)
        for start in range(0, 3200, 32)
        if (chunk := [lengths[index] for index in order[start : start + 32]])
    ]
    assert sum(spreads) / len(spreads) < 10


def test_evaluation_batches_cover_all_rows_longest_first():
    _, tokenizer = backbone()
    encoded = Dataset.from_dict(
        {"input_ids": [[1] * n for n in (3, 9, 5)], "attention_mask": [[1] * n for n in (3, 9, 5)]}
    )
    assert [chosen for chosen, _ in batches(encoded, collator(tokenizer), 2)] == [[1, 2], [0]]


def test_long_inputs_are_counted():
    _, tokenizer = backbone()
    rows = Dataset.from_dict({"id": ["0", "1"], "text": ["a" * 50, "b"], "text_pair": ["c" * 10, "d"], "label": [0, 1]})
    encoded, cut = encode(rows, tokenizer, 20)
    assert cut == 1 and len(encoded[0]["input_ids"]) == 20
    assert list(encoded["labels"]) == [0, 1]


def train(folder, epochs=3.0, seed=0, report=None, **settings):
    """Train a tiny LoRA on 48 rows in three steps an epoch; returns its weights and what `fit` says."""
    model, tokenizer = backbone(seed=seed)
    trained = method("lora", model, seed=seed)
    rows = get_task("toy-nli").load(Source(None), "train").select(range(48))
    encoded, _ = encode(rows, tokenizer, 64)
    config = TrainConfig(batch_size=16, **settings)

    def evaluator(current):
        total = sum(weight.detach().double().sum() for weight in current.parameters() if weight.requires_grad)
        return {"accuracy": float(total.abs() % 1)}

    outcome = fit(
        trained,
        encoded,
        collator(tokenizer),
        config,
        folder,
        seed=seed,
        device=torch.device("cpu"),
        epochs=epochs,
        learning_rate=1e-2,
        evaluator=evaluator,
        primary="accuracy",
        **({"report": report} if report else {}),
    )
    return {
        name: weight.detach().clone() for name, weight in trained.named_parameters() if weight.requires_grad
    }, outcome


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    first, outcome = train(tmp_path / "a")
    second, again = train(tmp_path / "b")
    assert same(first, second) and outcome == again
    other, _ = train(tmp_path / "c", seed=1)
    assert not same(first, other)
    assert [entry["epoch"] for entry in outcome.epochs] == [1, 2, 3]
    assert all({"loss", "accuracy"} <= entry.keys() for entry in outcome.epochs)


def test_best_keeps_the_best_epoch_and_last_the_last(tmp_path):
    _, best = train(tmp_path / "best", select_epoch="best")
    _, last = train(tmp_path / "last", select_epoch="last")
    top = max(best.epochs, key=lambda entry: entry["accuracy"])
    assert best.kept_epoch == top["epoch"] and last.kept_epoch == 3


def test_accumulation_gives_the_same_training(tmp_path):
    whole, _ = train(tmp_path / "whole", select_epoch="last")
    split, outcome = train(tmp_path / "split", select_epoch="last", device_batch_size=4)
    assert outcome.steps == 9
    # dropout draws differ with the shape of the batch, so only closeness can be asked
    for name in whole:
        assert (whole[name] - split[name]).abs().max() < 0.1


class Interrupt(Reporter):
    """Sends the process a Ctrl-C in the middle of the second epoch."""

    def advance(self, done, total, note=""):
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_resuming_gives_the_same_bits(tmp_path):
    undisturbed, expected = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", report=Interrupt())
    assert any((tmp_path / "b").glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, outcome = train(tmp_path / "b")
    assert same(undisturbed, resumed)
    assert [entry["accuracy"] for entry in outcome.epochs] == [entry["accuracy"] for entry in expected.epochs]


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path):
    undisturbed, _ = train(tmp_path / "a", select_epoch="last")
    (tmp_path / "b" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "b" / "checkpoint-7" / "trainable.safetensors").write_bytes(b"cut off")
    assert same(undisturbed, train(tmp_path / "b", select_epoch="last")[0])
    (tmp_path / "b" / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "b" / "checkpoint-99" / "trainer_state.json").write_text('{"cut')
    assert same(undisturbed, train(tmp_path / "b", select_epoch="last")[0])


def test_checkpoints_hold_only_what_is_trained(tmp_path):
    from safetensors.torch import load_file

    weights, _ = train(tmp_path, select_epoch="last")
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert load_file(checkpoint / "trainable.safetensors").keys() == weights.keys()
    assert not list(checkpoint.glob("*.bin"))


def test_divergence_is_said():
    from transformers import TrainerState, TrainingArguments
    from transformers.trainer_callback import TrainerControl

    from lora_drop.training import _History

    with pytest.raises(UserError, match="diverged"):
        _History(Reporter(), 1, False).on_log(
            TrainingArguments("x", use_cpu=True), TrainerState(epoch=1.0), TrainerControl(), {"loss": float("nan")}
        )
