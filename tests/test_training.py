import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from models import backbone, method
from safetensors.torch import load_file

from lora_drop.config.schema import TrainConfig
from lora_drop.data.batches import LengthGroups, split_batch
from lora_drop.data.sentences import batches, collator, encode
from lora_drop.errors import UserError
from lora_drop.interruption import Stopped, stoppable
from lora_drop.progress import Reporter
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Source
from lora_drop.training.checkpoints import RANDOM, Checkpointed, newest
from lora_drop.training.nested import load_nested, save_nested
from lora_drop.training.trainer import Validation, fit
from lora_drop.training.way import Way

pytestmark = pytest.mark.slow


@given(st.integers(1, 300), st.one_of(st.none(), st.integers(1, 64)))
def test_the_total_batch_is_exact(total, limit):
    at_a_time, accumulation = split_batch(total, limit)
    assert at_a_time * accumulation == total
    assert limit is None or at_a_time <= limit


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 3))
def test_every_epoch_visits_every_row_once(lengths, batch_size, seed):
    groups = LengthGroups(lengths, batch_size, seed)
    first = list(groups)
    assert sorted(first) == list(range(len(lengths)))
    if len(lengths) > batch_size:
        others = first[: (len(lengths) - 1) // batch_size * batch_size]  # all but the last batch, which stays last
        assert max(lengths[index] for index in first[:batch_size]) == max(lengths[index] for index in others)
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
    encoded, cut, _ = encode(rows, tokenizer, 20)
    assert cut == 1 and len(encoded[0]["input_ids"]) == 20
    assert list(encoded["labels"]) == [0, 1]


@pytest.mark.parametrize("pair", [True, False])
def test_an_input_that_fits_exactly_is_not_cut(pair):
    _, tokenizer = backbone()
    texts = ["a" * length for length in (3, 4, 5, 6)]
    rows = Dataset.from_dict({"text": texts, "label": [0] * 4} | ({"text_pair": ["b"] * 4} if pair else {}))
    whole = [len(ids) for ids in tokenizer(texts, ["b"] * 4 if pair else None)["input_ids"]]
    encoded, cut, _ = encode(rows, tokenizer, whole[1])
    assert cut == 2 and [len(ids) for ids in encoded["input_ids"]] == [whole[0], *[whole[1]] * 3]
    assert encode(rows, tokenizer, whole[3])[1] == 0


def train(
    folder, epochs=3.0, seed=0, report=None, best=None, dropout=True, killed_in=0, count=48, device="cpu", **settings
):
    """Train a tiny LoRA on 48 rows (or so) in three steps an epoch; returns its weights and what `fit` says.

    The metric is a number that depends on the weights, or is highest in epoch `best`; in the evaluation of epoch
    `killed_in` the process ends.
    """
    model, tokenizer = backbone(seed=seed)
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    trained = method("lora", model, seed=seed).to(device)
    rows = TASKS.get("toy-nli").load(Source(None), "train").select(range(count))
    encoded, *_ = encode(rows, tokenizer, 64)
    config = TrainConfig(epochs=epochs, batch_size=16, learning_rate=1e-2, **settings)
    steps = []

    class Counted(Reporter):
        def advance(self, done, total, note=""):
            steps[:] = [done]
            if report:
                report.advance(done, total, note)

    def metrics(current):
        if steps[0] == 3 * killed_in:
            raise Killed
        if best is not None:
            return {"accuracy": -abs(steps[0] / 3 - best)}
        total = sum(weight.detach().double().sum() for weight in current.parameters() if weight.requires_grad)
        return {"accuracy": float(total.abs() % 1)}

    outcome = fit(
        METHODS.get("lora"),
        trained,
        encoded,
        collator(tokenizer),
        config,
        folder,
        seed=seed,
        validation=Validation(metrics, "accuracy"),
        report=Counted(),
    )
    return {
        name: weight.detach().clone() for name, weight in trained.named_parameters() if weight.requires_grad
    }, outcome


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("epochs", [1.5, 2.0])  # 5 steps of 3 an epoch, and the end of an epoch
def test_a_finished_training_is_not_trained_further(epochs, tmp_path):
    """Its stage may have been killed later: a warm-up is saved only after its scoring."""
    first, outcome = train(tmp_path / "a", epochs=epochs, scheduler="constant")
    second, again = train(tmp_path / "a", epochs=epochs, scheduler="constant")
    assert same(first, second) and outcome == again and outcome.steps == (5 if epochs == 1.5 else 6)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    first, outcome = train(tmp_path / "a")
    second, again = train(tmp_path / "b")
    assert same(first, second) and outcome == again
    other, _ = train(tmp_path / "c", seed=1)
    assert not same(first, other)
    assert [entry["epoch"] for entry in outcome.epochs] == [1, 2, 3]
    assert all({"loss", "accuracy"} <= entry.keys() for entry in outcome.epochs)


def test_best_keeps_the_best_epoch_and_last_the_last(tmp_path):
    weights, best = train(tmp_path / "best", best=2)
    last_weights, last = train(tmp_path / "last", best=2, select_epoch="last")
    assert best.kept_epoch == 2 and last.kept_epoch == 3
    assert not same(weights, last_weights)
    kept = load_file(tmp_path / "best" / "checkpoint-6" / "trainable.safetensors")
    assert same(weights, kept)


def test_a_fraction_of_an_epoch_is_recorded_as_such(tmp_path):
    _, outcome = train(tmp_path, epochs=1.34, select_epoch="last")
    assert outcome.steps == 5 and outcome.kept_epoch == pytest.approx(5 / 3, abs=1e-3)


def test_the_head_has_a_rate_of_its_own(tmp_path):
    """The first step of AdamW is its learning rate in every element that has a gradient."""
    fresh, _ = backbone()
    before = {name: weight.detach().clone() for name, weight in method("lora", fresh).named_parameters()}
    options = {"epochs": 0.3, "weight_decay": 0.0, "warmup_ratio": 0.0, "select_epoch": "last"}
    for rate in (None, 1e-4):
        after, _ = train(tmp_path / str(rate), head_learning_rate=rate, **options)
        moved = {name: float((weight - before[name]).abs().max()) for name, weight in after.items()}
        heads = [value for name, value in moved.items() if "modules_to_save" in name]
        ups = [value for name, value in moved.items() if "lora_B" in name]
        assert heads and heads == pytest.approx([rate or 1e-2] * len(heads), rel=1e-3)
        assert ups and ups == pytest.approx([1e-2] * len(ups), rel=0.05)  # some gradients are near AdamW's ε


@pytest.mark.parametrize("count", [48, 41])
def test_accumulation_gives_the_same_training(tmp_path, count):
    """Also where the last batch of an epoch, and the last part of it, are smaller."""
    whole, first = train(tmp_path / "whole", select_epoch="last", dropout=False, count=count)
    split, second = train(tmp_path / "split", select_epoch="last", dropout=False, count=count, device_batch_size=4)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], rtol=0, atol=1e-5)
    assert [entry["loss"] for entry in first.epochs] == pytest.approx(
        [entry["loss"] for entry in second.epochs], rel=1e-5
    )


@pytest.mark.parametrize(("limit", "learns"), [(None, True), (16, True), (8, False)])
def test_layers_may_be_replayed_where_a_step_is_one_pass(tmp_path, monkeypatch, limit, learns):
    """A replay's gradients lie where the next one's will, so those of parts could not be added up."""
    step, asked = Way.step, set()

    def watched(way, *given, learns=False, **named):
        asked.add(learns)
        return step(way, *given, learns=learns, **named)

    monkeypatch.setattr(Way, "step", watched)
    train(tmp_path, epochs=1.0, device_batch_size=limit)
    assert asked == {learns}


class Interrupt(Reporter):
    """Sends the process a signal at a step."""

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def advance(self, done, total, note=""):
        if done == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("step", [3, 4, 6, 8, 9])
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_and_resuming_gives_the_same_bits(step, tmp_path):
    options = {"best": 1, "head_learning_rate": 3e-3}
    undisturbed, expected = train(tmp_path / "a", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", **options, report=Interrupt(step))
    assert (tmp_path / "b" / f"checkpoint-{step}" / "trainer_state.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, outcome = train(tmp_path / "b", **options)
    assert same(undisturbed, resumed) and outcome.kept_epoch == expected.kept_epoch == 1
    assert [entry["accuracy"] for entry in outcome.epochs] == [entry["accuracy"] for entry in expected.epochs]


def test_checkpoints_between_epochs(tmp_path):
    undisturbed, _ = train(tmp_path / "a", save_steps=2)
    steps = {int(path.name.split("-")[1]) for path in (tmp_path / "a").glob("checkpoint-*")}
    assert 9 in steps

    class Kill(Reporter):
        def advance(self, done, total, note=""):
            if done == 6:
                raise SystemExit

    with pytest.raises(SystemExit):
        train(tmp_path / "b", save_steps=2, report=Kill())
    assert (tmp_path / "b" / "checkpoint-4").exists()
    assert same(undisturbed, train(tmp_path / "b", save_steps=2)[0])


class Ends:
    """Gets a signal in its destructor."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_a_destructor_ends_the_work_all_the_same(number, raised):
    """Python prints and forgets what a destructor raises."""
    before = sys.unraisablehook
    with pytest.raises(raised), stoppable():
        ends = Ends(number)
        del ends
        time.sleep(20)
    assert sys.unraisablehook is before


def test_sigterm_and_sighup_save_and_give_their_exit_codes(tmp_path):
    undisturbed, _ = train(tmp_path / "a", best=1)
    before = signal.getsignal(signal.SIGTERM)
    for number, step in ((signal.SIGTERM, 4), (signal.SIGHUP, 7)):
        with pytest.raises(Stopped) as stopped:
            train(tmp_path / "b", best=1, report=Interrupt(step, number))
        assert stopped.value.code == 128 + number and (tmp_path / "b" / f"checkpoint-{step}").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert same(undisturbed, train(tmp_path / "b", best=1)[0])


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("epoch", "save_steps"), [(1, 3), (2, 1), (3, None)])
def test_a_kill_in_an_evaluation_keeps_the_same_epoch(epoch, save_steps, tmp_path):
    undisturbed, expected = train(tmp_path / "a", best=2, save_steps=save_steps)
    with pytest.raises(Killed):
        train(tmp_path / "b", best=2, save_steps=save_steps, killed_in=epoch)
    resumed, outcome = train(tmp_path / "b", best=2, save_steps=save_steps)
    assert same(undisturbed, resumed) and outcome.kept_epoch == expected.kept_epoch == 2
    assert [entry["accuracy"] for entry in outcome.epochs] == [entry["accuracy"] for entry in expected.epochs]


def damage_of(content: bytes):
    """As after a power loss, or by a faulty disk."""
    middle = len(content) // 2
    yield from (b"", content[:middle], bytes(len(content)), content[:middle] + bytes(len(content) - middle))
    yield content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :]
    yield None


class Notices(Reporter):
    def __init__(self):
        self.told = []

    def notice(self, text):
        self.told.append(text)


def half_trained(folder):
    """A training that was killed in step 8: the best epoch, and a step after it, have a checkpoint."""

    class Kill(Reporter):
        def advance(self, done, total, note=""):
            if done == 8:
                raise Killed

    with pytest.raises(Killed):
        train(folder, best=1, save_steps=7, report=Kill())
    assert [path.name for path in sorted(folder.iterdir())] == ["checkpoint-3", "checkpoint-7"]


def test_a_checkpoint_written_on_a_cpu_leaves_a_gpu_its_seed(tmp_path):
    half_trained(tmp_path)
    on_a_gpu = SimpleNamespace(args=SimpleNamespace(device=torch.device("cuda")))
    Checkpointed._load_rng_state(on_a_gpu, str(tmp_path / "checkpoint-7"))
    assert torch.equal(torch.get_rng_state(), load_nested(tmp_path / "checkpoint-7" / RANDOM)["cpu"])


@pytest.mark.parametrize("which", ["checkpoint-7", "checkpoint-3"])
def test_a_damaged_checkpoint_is_never_taken(which, tmp_path):
    half_trained(tmp_path / "half")
    files = sorted(path.name for path in (tmp_path / "half" / which).iterdir())
    assert files == sorted(
        ["manifest.json", "random.safetensors", "state.safetensors", "trainable.safetensors", "trainer_state.json"]
    )
    for name in files:
        for number, content in enumerate(damage_of((tmp_path / "half" / which / name).read_bytes())):
            folder = shutil.copytree(tmp_path / "half", tmp_path / f"{name}{number}")
            (folder / which / name).unlink()
            if content is not None:
                (folder / which / name).write_bytes(content)
            reporter = Notices()
            start = newest(folder, reporter, best=True)
            if which == "checkpoint-7":  # the one before it is taken
                assert start == folder / "checkpoint-3"
            else:  # the best epoch is lost, and with it the way to the end
                assert start is None and "training starts again" in reporter.told
            assert any(text.startswith(f"{which} is not used: ") for text in reporter.told)


def test_a_file_too_many_or_a_link_is_no_checkpoint(tmp_path):
    half_trained(tmp_path / "half")
    (tmp_path / "half" / "checkpoint-7" / "optimizer.pt").write_bytes(b"a pickle")
    weights = tmp_path / "half" / "checkpoint-3" / "trainable.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert newest(tmp_path / "half", Reporter(), best=True) is None
    assert not list((tmp_path / "half").iterdir()) and (tmp_path / "elsewhere").exists()


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    half_trained(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)
        else:
            assert path.is_dir() or path.suffix == ".json"


@pytest.mark.parametrize("value", [1, 0.1, float("inf"), None, True, "a", [1, (2, [])], {0: {"a": ()}, "b": (None,)}])
def test_nested_values_come_back_as_they_were(value, tmp_path):
    tensors = {"weights": (torch.arange(6).reshape(2, 3).T, torch.tensor(2.5)), 3: [torch.tensor([True])]}
    save_nested([value, tensors], tmp_path / "x.safetensors")
    plain, read = load_nested(tmp_path / "x.safetensors")
    assert plain == value and type(plain) is type(value)
    assert torch.equal(read["weights"][0], tensors["weights"][0]) and torch.equal(read[3][0], tensors[3][0])
    assert read["weights"][1] == 2.5 and isinstance(read["weights"], tuple)


def test_what_is_no_value_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="object cannot be part of a checkpoint"):
        save_nested({"a": object()}, tmp_path / "x.safetensors")


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path):
    undisturbed, _ = train(tmp_path / "a", select_epoch="last")
    (tmp_path / "b" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "b" / "checkpoint-7" / "trainable.safetensors").write_bytes(b"cut off")
    assert same(undisturbed, train(tmp_path / "b", select_epoch="last")[0])
    (tmp_path / "b" / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "b" / "checkpoint-99" / "trainer_state.json").write_text('{"cut')
    assert same(undisturbed, train(tmp_path / "b", select_epoch="last")[0])


def test_checkpoints_hold_only_what_is_trained(tmp_path):
    weights, _ = train(tmp_path, select_epoch="last")
    checkpoint = tmp_path / "checkpoint-9"
    assert load_file(checkpoint / "trainable.safetensors").keys() == weights.keys()
    assert not list(checkpoint.glob("*.bin"))


def test_divergence_is_said():
    from transformers import TrainerState, TrainingArguments
    from transformers.trainer_callback import TrainerControl

    from lora_drop.training.history import History

    with pytest.raises(UserError, match="diverged"):
        History(Reporter(), 3, 3, None).on_log(
            TrainingArguments("x", use_cpu=True), TrainerState(epoch=1.0), TrainerControl(), logs={"loss": float("nan")}
        )
