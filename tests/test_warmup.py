"""The warm-up of stage 2: its batch, its steps, its learning rate, and what is said of its losses."""

import json
from dataclasses import replace

import pytest
import torch
from models import backbone, method

from lora_drop.cli import app as cli
from lora_drop.config.loading import load_config
from lora_drop.config.schema import TrainConfig
from lora_drop.data.sentences import collator, encode
from lora_drop.files import read_json
from lora_drop.progress import Reporter, text_of
from lora_drop.registry import METHODS, TASKS
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import perform
from lora_drop.runs.stages import BY_NAME
from lora_drop.runs.store import Run
from lora_drop.tasks.base import Source
from lora_drop.training.trainer import fit
from lora_drop.training.warmup import FEW_STEPS, constant_loss, doubts, first_and_last, warmup_settings

pytestmark = pytest.mark.slow

SMALL = (
    "backbone=tiny:bert",
    "device=cpu",
    "limit.train=160",
    "limit.eval=20",
    "train.epochs=1",
    "train.batch_size=32",
    "train.learning_rate=5e-3",
)


def test_the_warm_up_is_the_training_but_for_what_it_says():
    config = load_config([], [*SMALL, "train.warmup_ratio=0.5", "train.weight_decay=0.3"])
    settings = warmup_settings(config)
    assert (settings.batch_size, settings.learning_rate, settings.epochs) == (32, 5e-3, 3)
    assert (settings.warmup_ratio, settings.weight_decay) == (0, 0.3)
    config = load_config([], [*SMALL, "warmup.batch_size=8", "warmup.learning_rate=1e-3", "train.warmup_steps=500"])
    settings = warmup_settings(config)
    assert (settings.batch_size, settings.learning_rate, settings.warmup_steps) == (8, 1e-3, None)


class Told(Reporter):
    def __init__(self):
        self.notices, self.notes = [], {}

    def notice(self, text):
        self.notices.append(text)

    def finish(self, stage, seconds, note):
        self.notes[stage] = note


def scored(folder, *overrides):
    told = Told()
    run = Run(folder, load_config([], [*SMALL, *overrides]))
    with run.working():
        for stage in ("sample", "score"):
            perform(Job(run, told), BY_NAME[stage])
    return run, told


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 3),  # 16 rows in batches of 32, three times
        (["warmup.batch_size=4"], 12),
        (["warmup.batch_size=4", "warmup.epochs=1.5"], 6),
        (["warmup.batch_size=4", "warmup.steps=7"], 7),
        (["warmup.batch_size=4", "warmup.steps=7", "sample.ratio=1.0"], 7),
    ],
)
def test_how_many_steps_a_warm_up_has(tmp_path, overrides, steps):
    run, told = scored(tmp_path / "run", *overrides)
    losses = read_json(tmp_path / "run" / "warmup" / "losses.json")["losses"]
    assert len(losses) == run.entry("score")["warmup_steps"] == steps
    first, last = first_and_last(losses)
    assert run.manifest["stages"]["score"]["losses"] == {"first_quarter": first, "last_quarter": last}
    assert f"after {steps} warm-up steps (loss {first:.3f} to {last:.3f})" in told.notes["score"]
    assert any(f"only {steps} optimizer steps" in text for text in told.notices)


def test_the_first_step_of_a_warm_up_counts_and_that_of_training_does_not(tmp_path):
    """Hu et al.'s schedule starts at rate 0. With one step B would stay 0, and so would every score."""
    run, _ = scored(tmp_path / "run", "warmup.steps=1")
    assert all(row["score"] > 0 for row in read_json(run.file("scores.json"))["modules"])

    model, tokenizer = backbone()
    trained = method("lora", model)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    rows, *_ = encode(TASKS.get("toy-nli").load(Source(None), "train").select(range(32)), tokenizer, 64)
    config = TrainConfig(batch_size=16, learning_rate=1e-2, warmup_ratio=0.06)
    fit(METHODS.get("lora"), trained, rows, collator(tokenizer), config, tmp_path / "checkpoints", seed=0, steps=1)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_batch_of_the_warm_up_is_an_input_of_its_stage_and_that_of_training_is_not(tmp_path):
    run, _ = scored(tmp_path / "run", "warmup.batch_size=4")
    scores = run.file("scores.json").read_bytes()

    def again(*overrides):
        told = Told()
        other = Run(tmp_path / "run", load_config([], [*SMALL, *overrides]))
        with other.working():
            perform(Job(other, told), BY_NAME["score"])
        return bool(told.notes)

    assert not again("warmup.batch_size=4", "train.warmup_ratio=0.5", "train.epochs=2")
    assert again("warmup.batch_size=8")
    assert run.file("scores.json").read_bytes() != scores


def test_a_warm_up_that_was_killed_keeps_its_losses(tmp_path):
    scored(tmp_path / "whole", "warmup.batch_size=4")

    class Killed(Told):
        def advance(self, done, total, note=""):
            if text_of(note).startswith("steps") and done == 7:
                raise RuntimeError("killed")

    run = Run(tmp_path / "killed", load_config([], [*SMALL, "warmup.batch_size=4", "train.save_steps=3"]))
    with pytest.raises(RuntimeError, match="killed"), run.working():
        perform(Job(run, Killed()), BY_NAME["sample"])
        perform(Job(run, Killed()), BY_NAME["score"])
    told = Told()
    with run.working():
        perform(Job(run, told), BY_NAME["score"])
    assert run.manifest["stages"]["score"]["resumed"]
    for name in ("warmup/losses.json", "scores.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_said_of_losses():
    falling = [1 - step / 100 for step in range(FEW_STEPS)]
    assert doubts(falling) == []
    (few,) = doubts(falling[:-1])
    assert f"only {FEW_STEPS - 1} optimizer steps" in few
    (flat,) = doubts(falling[::-1])
    first, last = first_and_last(falling[::-1])
    assert first < last and f"did not fall ({first:.3f} in its first quarter, {last:.3f} in its last)" in flat
    assert doubts([*falling, 1.0]) == []  # one bad step is no sign
    assert len(doubts([0.7])) == 2
    overshot = [0.8, *[0.7] * FEW_STEPS]  # it fell, to what the shares of two labels give
    assert doubts(overshot) == [] and doubts(overshot, 0.75) == []
    (chance,) = doubts(overshot, 0.693)
    assert "ended at 0.700, while a prediction that never looks at its input has 0.693" in chance


def test_the_loss_of_a_constant_prediction_is_the_lowest_that_training_its_bias_can_reach():
    def reached(kind, labels, loss):
        task = replace(TASKS.get("stsb"), kind=kind, labels=() if kind == "regression" else ("a", "b", "c"))
        bias = torch.zeros(task.outputs, requires_grad=True)
        steps = torch.optim.LBFGS([bias], max_iter=100)

        def closure():
            steps.zero_grad()
            value = loss(bias.expand(len(labels), -1))
            value.backward()
            return value

        steps.step(closure)
        return constant_loss(labels, task, 0.1), closure().item()

    functional = torch.nn.functional
    one = [0, 1, 1, 2, 1]
    found, least = reached(
        "classification", one, lambda out: functional.cross_entropy(out, torch.tensor(one), label_smoothing=0.1)
    )
    assert found == pytest.approx(least, abs=1e-5)
    several = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    found, least = reached(
        "multilabel", several, lambda out: functional.binary_cross_entropy_with_logits(out, torch.tensor(several))
    )
    assert found == pytest.approx(least, abs=1e-5)
    numbers = [1.0, 2.5, 4.0, 0.5]
    found, least = reached(
        "regression", numbers, lambda out: functional.mse_loss(out.squeeze(-1), torch.tensor(numbers))
    )
    assert found == pytest.approx(least, abs=1e-5)
    assert constant_loss([[5, 3]], TASKS.get("e2e"), 0.1) is None


def test_lora_drop_that_drops_nothing_says_so_at_the_end(tmp_path, capsys):
    options = [part for item in SMALL for part in ("-o", item)]
    arguments = ["run", "-d", str(tmp_path / "run"), *options, "-o", "method.threshold=1.0", "--json"]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == 0
    assert printed.err.rstrip().splitlines()[-1].startswith("note: LoRA-drop is plain LoRA here")
    (remark,) = json.loads(printed.out.splitlines()[-1])["remarks"]
    assert "--budget 0.5" in remark

    for options, said in (([], True), (["--budget", "0.8"], False), (["-q"], False)):
        with pytest.raises(SystemExit):
            cli.main(["select", "-d", str(tmp_path / "run"), *options])
        assert ("plain LoRA" in capsys.readouterr().err) == said
