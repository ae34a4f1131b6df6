"""AdaLoRA: its formula, its pruning, and that a continued training prunes as an undisturbed one."""

import pytest
import torch
from models import backbone, inputs, method
from peft import PeftModel

from lora_drop.config.schema import TrainConfig
from lora_drop.data.sentences import collator, encode
from lora_drop.errors import UserError
from lora_drop.methods.base import trainable
from lora_drop.progress import Reporter
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Source
from lora_drop.training.trainer import fit

ADALORA = METHODS.get("adalora")
VALUE = "base_model.model.roberta.encoder.layer.{}.attention.self.value"


def train(folder, report=None, epochs=4.0, **settings):
    model, tokenizer = backbone()
    model = method("adalora", model, rank=4)
    rows = TASKS.get("toy-nli").load(Source(None), "train").select(range(64))
    outcome = fit(
        ADALORA,
        model,
        encode(rows, tokenizer, 64)[0],
        collator(tokenizer),
        TrainConfig(epochs=epochs, batch_size=8, learning_rate=1e-2, **settings),
        folder,
        seed=0,
        report=report or Reporter(),
    )
    return model, outcome


def kept(model):
    return {name: (weight != 0).flatten() for name, weight in trainable(model) if "lora_E" in name}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("adalora"))[0]


def test_it_ends_at_the_budget_and_ranks_differ_between_layers(trained):
    masks = kept(trained)
    assert len(masks) == 8 and all(len(mask) == 6 for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == 8 * 4
    assert len({int(mask.sum()) for mask in masks.values()}) > 1


def test_an_overflow_does_not_stay_in_the_averages():
    """A step in fp16 that the scaler skips leaves infinite gradients."""
    model, tokenizer = backbone()
    model = method("adalora", model, rank=4).eval()
    allocation = ADALORA.stepper(model, 32)
    batch = {**inputs(tokenizer), "labels": torch.arange(7) % 2}
    optimizer = torch.optim.AdamW([weight for _, weight in trainable(model)], lr=1e-2)
    for number in range(1, 33):
        model(**batch).loss.backward()
        if number == 9:
            for _, weight in trainable(model):
                weight.grad.fill_(torch.inf)
        else:
            optimizer.step()
        allocation.step(number)
        optimizer.zero_grad()
    assert all(bool(average.isfinite().all()) for average in allocation.state().values())
    assert sum(int(mask.sum()) for mask in kept(model).values()) == 8 * 4


def test_it_equals_its_formula_in_float64(trained):
    module = trained.eval().get_submodule(VALUE.format(3))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    p, q, values = (getattr(module, name)["default"].double() for name in ("lora_B", "lora_A", "lora_E"))
    update = p @ torch.diag(values.flatten()) @ q * 8 / (6 + 1e-5)  # PEFT divides alpha by the initial rank
    expected = x.double() @ (module.base_layer.weight.double() + update).T + module.base_layer.bias.double()
    torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_saved_it_is_an_ordinary_peft_adapter(trained, tmp_path):
    ADALORA.save(trained, tmp_path)
    batch = inputs(backbone()[1])
    with torch.no_grad():
        expected = trained.eval()(**batch).logits
        assert torch.equal(ADALORA.load(backbone()[0], tmp_path).eval()(**batch).logits, expected)
        assert torch.equal(PeftModel.from_pretrained(backbone()[0], str(tmp_path)).eval()(**batch).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 13, 17, 29])  # before, in, at the end of, and after the pruning of 32 steps
def test_a_continued_training_gives_the_same_bits(trained, step, tmp_path):
    class Kill(Reporter):
        def advance(self, done, total, note=""):
            if done == step + 1:
                raise SystemExit

    with pytest.raises(SystemExit):
        train(tmp_path, Kill(), save_steps=step)
    continued, outcome = train(tmp_path)
    assert outcome.steps == 32
    expected = dict(trainable(trained))
    assert all(torch.equal(weight, expected[name]) for name, weight in trainable(continued))


def test_the_regulariser_is_the_one_that_peft_adds_to_a_models_own_loss(trained):
    batch = {**inputs(backbone()[1]), "labels": torch.arange(7) % 2}
    outputs = trained.eval()(**batch)
    own = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
    torch.testing.assert_close(ADALORA.penalty(trained), outputs.loss - own, rtol=1e-4, atol=1e-6)


def test_smoothed_labels_are_trained_with_the_regulariser(tmp_path):
    """Without smoothing the loss is the model's own; with next to none of it, training must be the same."""
    from test_pipeline import run

    from lora_drop.files import read_json

    losses = []
    for smoothing in (0.0, 1e-9):
        folder = tmp_path / str(smoothing)
        run(folder, "method.name=adalora", "train.epochs=1", f"train.label_smoothing={smoothing}", stages=["train"])
        losses.append(read_json(folder / "run.json")["stages"]["train"]["epochs"][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("limit", [None, 2])
def test_the_regulariser_counts_once_a_step_however_a_batch_is_split(limit, tmp_path):
    """Also in the last batch of an epoch, which has fewer parts. Here it is all of the loss, and does not change."""
    model, tokenizer = backbone()
    model = method("adalora", model, rank=4)
    outcome = fit(
        ADALORA,
        model,
        encode(TASKS.get("toy-nli").load(Source(None), "train").select(range(12)), tokenizer, 64)[0],
        collator(tokenizer),
        TrainConfig(epochs=4.0, batch_size=8, device_batch_size=limit, learning_rate=1e-12, weight_decay=0.0),
        tmp_path,
        seed=0,
        loss=lambda outputs, labels, num_items_in_batch: outputs.logits.sum() * 0,
    )
    penalty = ADALORA.penalty(model).item()
    assert penalty > 0.1 and [entry["loss"] for entry in outcome.epochs] == pytest.approx([penalty] * 4, rel=1e-4)


def test_too_few_steps_to_prune_in_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot prune in 1 steps"):
        train(tmp_path, epochs=0.1)
