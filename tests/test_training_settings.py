"""What the settings of a training come to: the order of the rows, the optimizer's decay, clipping and schedule, the steps."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from models import backbone, method
from transformers import TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerControl

from lora_drop.config.schema import TrainConfig
from lora_drop.data.sentences import collator, encode
from lora_drop.errors import UserError
from lora_drop.methods.base import trainable
from lora_drop.progress import Reporter
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Source
from lora_drop.training.history import History
from lora_drop.training.trainer import fit, steps_of, warmup_steps

pytestmark = pytest.mark.slow


def test_rows_come_in_an_order_of_the_seed(tmp_path):
    _, tokenizer = backbone()
    rows, *_ = encode(TASKS.get("toy-nli").load(Source(None), "train").select(range(32)), tokenizer, 64)
    config, seen, collate = TrainConfig(batch_size=8, packing="never", select_epoch="last"), {}, collator(tokenizer)
    for seed in (0, 1):

        def watched(given, seed=seed):
            seen.setdefault(seed, []).append([row["input_ids"] for row in given])
            return collate(given)

        fit(
            METHODS.get("lora"),
            method("lora", backbone()[0]),
            rows,
            watched,
            config,
            tmp_path / str(seed),
            seed=seed,
            steps=4,
        )
    first, second = (found[-4:] for found in seen.values())
    assert sorted(chain.from_iterable(first)) == sorted(chain.from_iterable(second)) and first != second


def test_decay_clipping_and_schedule_reach_the_optimizer(tmp_path):
    """In the first step B is 0, so A has no gradient: only the decay moves it. Clipped to nothing, B hardly moves."""
    _, tokenizer = backbone()
    rows, *_ = encode(TASKS.get("toy-nli").load(Source(None), "train").select(range(16)), tokenizer, 64)
    common = {"batch_size": 16, "packing": "never", "warmup_ratio": 0.0, "learning_rate": 0.01, "select_epoch": "last"}

    def trained(steps, **settings):
        model, folder = method("lora", backbone()[0]), tmp_path / str(len(list(tmp_path.iterdir())))
        before = {name: each.detach().clone() for name, each in trainable(model) if "lora_" in name}
        fit(
            METHODS.get("lora"),
            model,
            rows,
            collator(tokenizer),
            TrainConfig(**common, **settings),
            folder,
            seed=0,
            steps=steps,
        )
        return before, {name: each.detach() for name, each in trainable(model) if "lora_" in name}

    before, after = trained(1, weight_decay=0.5, max_grad_norm=1e-10)
    for name in before:
        if "lora_A" in name:
            torch.testing.assert_close(after[name], before[name] * (1 - 0.01 * 0.5))
        else:
            assert after[name].abs().max() < 1e-3
    moved = [
        max(
            float(each.abs().max())
            for name, each in trained(4, weight_decay=0.0, scheduler=kind)[1].items()
            if "lora_B" in name
        )
        for kind in ("constant", "linear")
    ]
    assert moved[0] > 1.2 * moved[1]  # steps of 1, 1, 1, 1 and of 1, 0.75, 0.5, 0.25


def test_the_ramp_takes_at_most_half_of_the_steps():
    assert warmup_steps(TrainConfig(warmup_steps=500), 21) == 11 and warmup_steps(TrainConfig(warmup_steps=5), 21) == 5
    assert warmup_steps(TrainConfig(warmup_ratio=0.06, warmup_steps=None), 20) == 2
    assert steps_of(TrainConfig(epochs=2.5, batch_size=16), 33) == 8


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps_however_often_it_is_logged():
    """Here logged after steps 2, 3, 5, 6 and 7, of three an epoch; the last epoch ends after one."""
    losses = {2: 1.0, 3: 4.0, 5: 2.0, 6: 5.0, 7: 6.0}
    log = [{"loss": loss, "step": step} for step, loss in losses.items()]
    log[2:2] = [{"eval_accuracy": 0.5, "eval_held_out": 0.4, "step": 3}]
    log += [{"eval_accuracy": 0.7, "step": 7}, {"train_runtime": 9.0, "step": 7}]
    found = History(Reporter(), 7, 3, None).outcome(TrainerState(global_step=7, max_steps=8, log_history=log), 3, "x")
    assert found.epochs == [
        {"epoch": 1.0, "loss": pytest.approx((2 * 1 + 4) / 3), "accuracy": 0.5, "held_out": 0.4},
        {"epoch": 2.0, "loss": pytest.approx((2 * 2 + 5) / 3)},
        {"epoch": 2.3333, "loss": 6.0, "accuracy": 0.7},
    ]
    assert (found.kept_epoch, found.steps, found.losses) == (1.0, 7, list(losses.values()))


@pytest.mark.parametrize("loss", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_not_finite_ends_the_training(loss):
    told = TrainingArguments("x", use_cpu=True), TrainerState(epoch=1.0), TrainerControl()
    History(Reporter(), 3, 3, None).on_log(*told, logs={"loss": 5.0})
    with pytest.raises(UserError, match="training diverged"):
        History(Reporter(), 3, 3, None).on_log(*told, logs={"loss": loss})


def test_a_method_does_its_work_after_each_step_and_sees_its_gradients(tmp_path):
    class Watching:
        def __init__(self, model, steps):
            self.model, self.numbers, self.steps = model, [], steps
            seen.append(self)

        def step(self, number):
            assert all(each.grad is not None for name, each in trainable(self.model) if "lora_" in name)
            self.numbers.append(number)

        def state(self):
            return {}

        def restore(self, state):
            raise AssertionError("nothing is continued here")

    seen = []
    model, tokenizer = backbone()
    lora = replace(METHODS.get("lora"), stepper=Watching)
    rows, *_ = encode(TASKS.get("toy-nli").load(Source(None), "train").select(range(12)), tokenizer, 64)
    config = TrainConfig(epochs=2, batch_size=8, device_batch_size=4)
    fit(lora, method("lora", model), rows, collator(tokenizer), config, tmp_path, seed=0)
    (watching,) = seen
    assert watching.numbers == [1, 2, 3, 4] and watching.steps == 4
