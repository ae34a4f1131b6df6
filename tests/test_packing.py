"""The path without padding gives the numbers of the stock one."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
import transformers
from datasets import Dataset
from models import backbone, inputs, method, randomise_b, trained_lora
from test_causal_training import train as train_decoder
from test_packed_attention import plain_attention
from test_training import train
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, default_data_collator

from lora_drop.config.schema import MethodConfig, TrainConfig
from lora_drop.data.completions import encode_pairs, pair_collator, token_loss
from lora_drop.methods.lora import add_lora
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.importance import score
from lora_drop.pruning.places import find_places
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source
from lora_drop.training.packing import Packing, prepare
from lora_drop.training.packing.layout import filled
from lora_drop.training.way import find_way

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 514,
    "pad_token_id": 0,
}


def labelled(tokenizer, count=7):
    return {**inputs(tokenizer, count), "labels": torch.arange(count) % 2}


def gradients(model, batch, loss=None):
    """Loss, logits and the gradients of everything that is trained."""
    given = dict(batch)
    labels = given.pop("labels") if loss else None
    outputs = model(**given)
    value = loss(outputs, labels) if loss else outputs.loss
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return value.detach(), {name: one for name, one in zip(trained, found, strict=True) if one is not None}


def assert_equal_paths(model, batch, packing, loss=None, learns=False):
    model.eval()
    stock, expected = gradients(model, batch, loss)
    with packing.over(batch, learns=learns):
        value, found = gradients(model, batch, loss)
    assert float(value) == pytest.approx(float(stock), rel=1e-5)
    assert found.keys() == expected.keys() and found
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-5 * float(expected[name].abs().max()) + 1e-9)


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
@pytest.mark.parametrize("trained", ["lora", "full", "vera", "tied_lora", "sparse_adapter", "adalora"])
def test_loss_and_gradients_of_a_classifier_are_those_of_the_stock_path(name, trained):
    model, tokenizer = backbone(name)
    model = method(trained, model, rank=4)
    randomise_b(model, 0)
    packing, how = prepare(model, labelled(tokenizer, 3))
    assert how == f"packed, last layer only for the {'last' if name == 'tiny:llama' else 'first'} token of each row"
    assert_equal_paths(model, labelled(tokenizer, 9), packing)


@pytest.mark.parametrize("kind", ["distilbert", "electra", "xlm-roberta", "albert", "mistral", "qwen2"])
def test_other_architectures_are_packed_without_being_known(kind):
    tokenizer = backbone("tiny:roberta")[1]
    sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48} if kind == "distilbert" else SIZES
    extra = {"num_key_value_heads": 1, "sliding_window": None} if kind in ("mistral", "qwen2") else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **sizes, **extra}, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    packing, how = prepare(model, labelled(tokenizer, 3))
    assert how.startswith("packed, last layer only for the "), how
    assert_equal_paths(model, labelled(tokenizer, 9), packing)


def test_a_batch_with_rows_longer_than_the_device_can_compute_is_padded():
    model, tokenizer = backbone("tiny:bert")
    rows = Dataset.from_list([{key: value.tolist() for key, value in inputs(tokenizer, 1).items()}] * 3)
    rows = Dataset.from_dict({key: [value[0] for value in rows[key]] for key in rows.column_names})
    way = find_way(model, rows, default_data_collator, TrainConfig(), learns=False)
    batch = inputs(tokenizer, 5)
    longest = int(batch["attention_mask"].sum(1).max())
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        for limit, packs in ((None, True), (longest, True), (longest - 1, False)):
            way.packing.longest = limit
            with way.step(batch) as layout:
                assert (layout is not None) == packs
                torch.testing.assert_close(model(**batch).logits, expected)


def decoder(rows=8):
    located = locate("tiny:llama")
    tokenizer, task = load_tokenizer(located, causal=True), TASKS.get("toy-nlg")
    backbone_model = load_model(located, task, 0, tokenizer)
    model = add_lora(backbone_model, MethodConfig(), 0, find_places(backbone_model))
    randomise_b(model, 0)
    encoded, _ = encode_pairs(task.load(Source(None), "train").select(range(rows)), tokenizer, 200)
    return model, pair_collator(tokenizer)(list(encoded))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_language_model_is_widened_to_its_vocabulary_at_learned_tokens_alone(smoothing):
    model, batch = decoder()
    loss = token_loss(smoothing)
    packing, how = prepare(model, {name: value[:3] for name, value in batch.items()}, loss)
    assert how == "packed, last layer only for the learned tokens"
    assert_equal_paths(model, batch, packing, loss)
    with packing.over(batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape[:2] == (1, int((batch["labels"][:, 1:] != -100).sum()))


def test_a_head_that_reads_more_than_one_token_gets_them_all():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(32, 2)

        def forward(self, hidden, **_):
            return self.out(hidden[:, 0] + 2 * hidden[:, 1])

    model, tokenizer = backbone("tiny:roberta")
    model.classifier = Pair()
    packing, how = prepare(model, labelled(tokenizer, 3))
    assert how == "packed"
    assert_equal_paths(model, labelled(tokenizer, 9), packing)


def test_a_head_that_reads_padding_is_left_alone():
    model, tokenizer = backbone("tiny:roberta")
    out = torch.nn.Linear(32, 2)
    model.classifier = torch.nn.Sequential(Mean(), out)
    packing, how = prepare(model, labelled(tokenizer, 3))
    assert packing is None and "differ" in how


class Mean(torch.nn.Module):
    def forward(self, hidden):
        return hidden.mean(1)


class AppleGpu(TorchFunctionMode):
    """Refuses float64 but for tensors that were taken to the CPU, as torch does on an Apple GPU."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            self.taken.append(result)
        elif isinstance(result, torch.Tensor) and result.dtype == torch.float64 and args:
            known = (*self.taken, *(one for one in args if getattr(one, "dtype", None) == torch.float64))
            assert any(one is args[0] for one in known), f"{function} makes float64 on the device"
        return result


def test_an_apple_gpu_is_asked_for_no_float64():
    model, tokenizer = trained_lora("tiny:bert")
    with AppleGpu():
        packing, how = prepare(model, labelled(tokenizer))
    assert packing is not None, how
    with AppleGpu(), pytest.raises(AssertionError, match="float64 on the device"):
        torch.ones(2).double()


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("convbert", {"embedding_size": 32}, "does not use transformers' attention interface; by its own code: "),
        ("nystromformer", {}, "differ when the rows are joined"),
        ("bart", {}, "has two stacks of layers"),
    ],
)
def test_what_cannot_be_packed_is_computed_the_stock_way_and_says_why(kind, extra, reason):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1} if kind == "bart" else SIZES
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**SIZES, **sizes, **extra}))
    batch = labelled(backbone("tiny:roberta")[1], 3)
    if kind == "bart":  # it classifies by the end of the text
        batch["input_ids"][range(3), batch["attention_mask"].sum(1) - 1] = model.config.eos_token_id
    packing, how = prepare(model, batch)
    assert packing is None and how.startswith("padded: ") and reason in how


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(), "RuntimeError"),
        (AssertionError("\nlengths\nof rows"), "AssertionError: lengths"),
        (KeyError("mask"), "KeyError: 'mask'"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_whatever_a_model_raises_it_is_computed_the_stock_way(error, said):
    model, tokenizer = trained_lora("tiny:bert")
    model.eval()
    batch = labelled(tokenizer, 3)
    expected = model(**batch).loss

    def refuse(module, given):
        if len(given[0]) == 1:  # rows that are joined
            raise error

    model.get_base_model().bert.encoder.layer[1].intermediate.dense.register_forward_pre_hook(refuse)
    assert prepare(model, batch) == (None, f"padded: {said}")
    assert torch.equal(model(**batch).loss, expected)


def test_what_fails_only_with_joined_rows_says_why():
    model, tokenizer = trained_lora("tiny:bert")
    batch = labelled(tokenizer, 3)

    def refuse(module, given):
        if given[0].shape[0] == 1 and given[0].shape[1] > len(batch["input_ids"][0]):  # more tokens than a row has
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.get_base_model().bert.encoder.layer[1].intermediate.dense.register_forward_pre_hook(refuse)
    packing, how = prepare(model, batch)
    assert packing is None and how.startswith("padded: OutOfMemoryError: CUDA out of memory")


WINDOWS = {
    "mistral": {"sliding_window": 8, "num_key_value_heads": 1},
    "gemma2": {"sliding_window": 8, "num_key_value_heads": 1, "head_dim": 16, "attn_logit_softcapping": 0.5},
    "gemma3_text": {"sliding_window": 8, "num_key_value_heads": 1, "head_dim": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("longer", [False, True])
def test_windows_and_soft_caps_are_packed(kind, longer):
    """A window is shorter than the rows, or longer, in layers that are trimmed as well."""
    tokenizer = backbone("tiny:roberta")[1]
    width = "local_attention" if kind == "modernbert" else "sliding_window"
    options = {**WINDOWS[kind], **({width: 1000} if longer else {})}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **options}, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # so that far tokens would be seen
    packing, how = prepare(model, labelled(tokenizer, 3))
    if packing is None and int(transformers.__version__.split(".")[1]) < 20:
        pytest.skip(f"as transformers {transformers.__version__} has it, it is {how}")
    assert how.startswith("packed, last layer only for the "), how
    assert_equal_paths(model, labelled(tokenizer, 9), packing)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_that_writes_texts_is_packed(kind):
    options = {**SIZES, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **options, head_dim=16, moe_intermediate_size=16)
    )
    batch, loss = decoder()[1], token_loss(0.0)
    packing, how = prepare(model, {name: value[:3] for name, value in batch.items()}, loss)
    assert how == "packed, last layer only for the learned tokens"
    assert_equal_paths(model, batch, packing, loss)


def test_a_model_whose_rows_see_each_other_is_found_out():
    model, tokenizer = backbone("tiny:bert")
    layer = model.bert.encoder.layer[0]
    layer.register_forward_hook(lambda _module, _inputs, output: output + output.mean(1, keepdim=True))
    packing, how = prepare(model, labelled(tokenizer, 3))
    assert packing is None and "differ" in how


def test_everything_is_put_back_also_after_an_exception():
    model, tokenizer = trained_lora()
    batch = labelled(tokenizer)
    packing, _ = prepare(model, batch)

    def state():
        configs = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        patched = [module for module in model.modules() if "forward" in vars(module)]
        return configs, hooks, patched, [module.training for module in model.modules()]

    model.train()
    model.get_base_model().classifier.eval()
    before = state()
    with contextlib.suppress(ZeroDivisionError), packing.over(batch):
        assert state() != before
        model(**batch)
        raise ZeroDivisionError
    prepare(model, batch)
    assert state() == before and Packing.active is None


def test_every_dropout_of_the_model_is_ours_while_packed(monkeypatch):
    """torch's own generator of masks is not asked once, in the embeddings and the head neither."""
    model, tokenizer = trained_lora("tiny:bert")
    batch = labelled(tokenizer)
    packing, _ = prepare(model, batch)
    model.train()
    with packing.over(batch), torch.profiler.profile() as profile:
        model(**batch).loss.backward()
    names = [event.key for event in profile.key_averages()]
    assert "_Dropout" in names and not any("bernoulli" in name or name == "aten::dropout" for name in names)


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_mixed_precision_is_packed_as_well(name):
    model, tokenizer = trained_lora(name)
    batch = labelled(tokenizer, 3)
    with torch.autocast("cpu", torch.bfloat16):
        packing, how = prepare(model, batch)
        assert how.startswith("packed, last layer only")
        model.train()
        with packing.over(batch):
            value, found = gradients(model, batch)
    assert math.isfinite(float(value)) and all(one.isfinite().all() for one in found.values())


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_a_backbone_in_bf16_under_an_adapter_in_fp32_is_packed(name):
    model, tokenizer = trained_lora(name)
    for key, parameter in model.named_parameters():
        if "lora_" not in key and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    batch = labelled(tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        packing, how = prepare(model, batch)
        assert how.startswith("packed, last layer only") and len(packing.loras) == len(loras(model)) > 0
        model.eval()
        stock, expected = gradients(model, batch)
        with packing.over(batch):
            value, found = gradients(model, batch)
    assert float(value) == pytest.approx(float(stock), rel=2e-2)
    for key, one in found.items():
        assert one.dtype == torch.float32
        assert float((one - expected[key]).norm()) < 0.1 * float(expected[key].norm()) + 1e-4


@pytest.mark.parametrize(("name", "way"), [("tiny:bert", "first"), ("tiny:llama", "last")])
def test_numbers_may_be_as_far_off_as_those_of_another_attention(name, way, monkeypatch):
    """As in a deep model, here by a bound that no rounding keeps."""
    model, tokenizer = trained_lora(name)
    monkeypatch.setitem(prepare.__globals__, "HALF", 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        packing, how = prepare(model, labelled(tokenizer, 3))
    assert packing is not None and how.startswith("packed") and packing.reads == way


@pytest.mark.parametrize(
    ("off", "rounding"), [(0.3, 0.7), (1.0, 0.7), (math.inf, 0.7), (math.inf, math.inf), (0.1, math.inf), (0.1, 0.06)]
)
def test_what_is_far_off_is_no_rounding(off, rounding, monkeypatch):
    model, tokenizer = trained_lora("tiny:bert")
    monkeypatch.setitem(prepare.__globals__, "_distance", lambda *_: off)
    monkeypatch.setitem(prepare.__globals__, "_own_rounding", lambda *_: rounding)
    with torch.autocast("cpu", torch.bfloat16):
        packing, how = prepare(model, labelled(tokenizer, 3))
    assert packing is None and "its loss or gradients differ" in how


@pytest.fixture
def row_by_row(monkeypatch):
    """The attention that a GPU's kernel computes: torch's for a CPU has no causal one with rows of no tokens."""

    def attend(query, key, value, layout, scoring):
        return plain_attention(query, key, value, layout.offsets.diff().tolist(), scoring.scaling, scoring.causal)

    monkeypatch.setattr("lora_drop.training.packing.packed.varlen_attention", attend)


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama", "a language model"])
def test_rows_that_fill_a_batch_up_change_nothing(name, row_by_row):
    """As before a replay on a GPU, here computed directly."""
    if name == "a language model":
        (model, batch), loss = decoder(), token_loss(0.1)
    else:
        model, tokenizer = trained_lora(name)
        batch, loss = labelled(tokenizer), None
    packing, _ = prepare(model, batch, loss)
    sizes = []

    def stack(layout, **given):
        assert given.get("input_ids") is None  # a recording begins after the embedding
        sizes.append((given["inputs_embeds" if packing.embeds else "hidden_states"].shape[1], len(layout.offsets)))
        return type(packing.stack).forward(packing.stack, **given)

    packing.replay = stack
    assert_equal_paths(model, batch, packing, loss, learns=True)
    real = int(batch["attention_mask"].sum())
    ((tokens, bounds),) = sizes
    assert real < tokens <= 1.25 * real + 64 and bounds > len(batch["labels"]) + 1


@pytest.mark.parametrize(("name", "fails"), [("tiny:bert", False), ("tiny:bert", True), ("tiny:llama", False)])
def test_layers_are_recorded_once_for_a_size(name, fails, monkeypatch, row_by_row):
    """As far as that goes without a GPU, which alone can record: what is to be recorded is computed directly."""
    made = []

    def record(layers, sample, **options):
        made.append(sample[0].shape[1])
        if fails and len(made) == 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr("lora_drop.training.packing.replay._undisturbed", contextlib.nullcontext)
    monkeypatch.setattr("lora_drop.training.packing.replay.TORCH", (2, 0))
    model, tokenizer = trained_lora(name)
    large, small = labelled(tokenizer), labelled(tokenizer, 2)
    packing, how = prepare(model, large, replays=True)
    assert how.endswith("; layers replayed as CUDA graphs in training")
    made.clear()
    model.eval()
    for batch in (large, small, large, small):
        stock, expected = gradients(model, batch)
        with packing.over(batch, learns=True):
            value, found = gradients(model, batch)
        assert float(value) == pytest.approx(float(stock), rel=1e-5)
        for key, one in found.items():
            torch.testing.assert_close(one, expected[key], rtol=1e-4, atol=1e-4 * float(expected[key].abs().max()))
    assert len(made) == len(set(made)) == 2 and made[0] > made[1]
    packing.replay.forget()
    with packing.over(large, learns=True):
        model(**large)
    assert len(made) == (2 if fails else 3)  # memory that once did not suffice is not asked for again


def test_layers_that_cannot_be_recorded_are_computed_and_it_is_said_why(monkeypatch):
    def refuse(*given, **options):
        raise RuntimeError("capture is not allowed")

    monkeypatch.setattr("lora_drop.training.packing.replay.Replay.__init__", refuse)
    model, tokenizer = trained_lora("tiny:bert")
    packing, how = prepare(model, labelled(tokenizer), replays=True)
    assert packing.replay is None and how.endswith("its layers are not recorded: RuntimeError: capture is not allowed")


@pytest.mark.parametrize(("tokens", "total"), [(1, 64), (65, 128), (300, 320), (513, 640), (4000, 4096), (4096, 4096)])
def test_batches_are_filled_up_to_few_sizes(tokens, total):
    assert filled(tokens)[0] == total
    assert len({filled(count)[0] for count in range(257, 4097)}) == 16


# ---- training and scoring


def test_training_without_dropout_is_that_of_the_stock_path(tmp_path):
    packed, first = train(tmp_path / "packed", dropout=False)
    padded, second = train(tmp_path / "padded", dropout=False, packing="never")
    assert first.computed.startswith("packed") and second.computed.startswith("padded: train.packing=never")
    for one, two in zip(first.epochs, second.epochs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], rtol=0, atol=1e-5)


def test_training_a_decoder_is_that_of_the_stock_path(tmp_path):
    packed, first = train_decoder(tmp_path / "packed")
    padded, _ = train_decoder(tmp_path / "padded", packing="never")
    assert first.computed.startswith("packed, last layer only for the learned tokens; fp32 products by")
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], rtol=0, atol=1e-5)


def assert_same_when_repeated(model, batch, packing, recomputes):
    """Loss and gradients of a training step are the same again, with activations kept or computed twice; returns that loss."""
    model.train()

    def found(checkpointed):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(5)
        with packing.over(batch):
            return gradients(model, batch)

    (loss, kept), (again, second) = found(False), found(recomputes)
    assert float(loss) == float(again)
    for name, one in kept.items():
        torch.testing.assert_close(one, second[name], rtol=1e-6, atol=1e-9)
    return loss


def test_activations_computed_again_have_the_same_masks():
    model, tokenizer = trained_lora("tiny:bert")
    batch = labelled(tokenizer)
    packing, how = prepare(model, batch, recomputes=True)
    assert how == "packed"
    assert_same_when_repeated(model, batch, packing, recomputes=True)


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_scores_are_those_of_the_stock_path(name):
    model, tokenizer = trained_lora(name)
    batch = inputs(tokenizer, 9)
    packing, _ = prepare(model, labelled(tokenizer, 3))
    stock, packed = score(model, [batch], per_example=True), score(model, [batch], per_example=True, packing=packing)
    assert [row.score for row in packed.rows] == pytest.approx([row.score for row in stock.rows], rel=1e-5)
    for layer in loras(model):
        assert packed.norms[layer] == pytest.approx(stock.norms[layer], rel=1e-5)
    assert (packed.examples, packed.tokens) == (stock.examples, stock.tokens)


# ---- layers below the first LoRA


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_the_backward_pass_ends_at_the_lowest_lora(packing):
    """tiny:bert has four layers; LoRA is on the upper two, and of what the lower two compute nothing needs a gradient."""
    model, tokenizer = backbone("tiny:bert")
    model = add_lora(model, MethodConfig(), 0, [place for place in find_places(model) if place.layer >= 2])
    layers = model.get_base_model().bert.encoder.layer
    seen = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, __, out, number=number: seen.append((number, out.requires_grad)))
    config = replace(TrainConfig(), packing=packing)
    rows = Dataset.from_dict({name: value.tolist() for name, value in labelled(tokenizer, 3).items()})
    way = find_way(model, rows, default_data_collator, config)
    assert (way.packing is not None) == (packing == "auto")
    model.train()
    batch = labelled(tokenizer, 3)
    seen.clear()
    with way.step(batch):
        model(**batch).loss.backward()
    assert set(seen) == {(0, False), (1, False), (2, True), (3, True)}
