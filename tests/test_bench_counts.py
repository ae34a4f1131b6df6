"""The numbers behind the benchmark: operations against PyTorch's own counter, statistics against cases known exactly."""

import pytest
import torch
from bench.flops import Rows, forward_flops, shape_of, training_flops
from bench.rounds import orders
from bench.statistics import exponent, ratios, spread
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.models.backbones import load_config, load_meta_model, load_model, load_tokenizer, locate
from lora_drop.registry import METHODS, TASKS

BATCH, LENGTH, RANK = 3, 11, 4
MODELS = [("tiny:bert", "toy-nli"), ("tiny:roberta", "toy-nli"), ("tiny:llama", "toy-nli"), ("tiny:llama", "toy-nlg")]


def counted(name: str, task: str) -> tuple[PretrainedConfig, int, int]:
    """A model's configuration, and what PyTorch counts in one forward and one backward pass of LoRA on rows without padding."""
    located = locate(name)
    backbone = load_model(located, TASKS.get(task), 0, load_tokenizer(located))
    backbone.set_attn_implementation("eager")  # of the others PyTorch counts what their kernels compute twice, too
    model = METHODS.get("lora").build(backbone, MethodConfig(rank=RANK), 0, None)
    ids = torch.randint(4, 100, (BATCH, LENGTH))
    labels = ids if TASKS.get(task).kind == "generation" else torch.zeros(BATCH, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        forward = counter.get_total_flops()
        loss.backward()
    return backbone.config, forward, counter.get_total_flops() - forward


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_operations_are_those_that_pytorch_counts(name, task):
    config, forward, backward = counted(name, task)
    shape = shape_of(config, TASKS.get(task).kind == "generation")
    rows = Rows([LENGTH] * BATCH)
    assert forward_flops(shape, rows, RANK).full == forward
    assert training_flops(shape, rows, RANK).full == forward + backward


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_operations_add_up_over_rows(name):
    shape = shape_of(load_config(locate(name), TASKS.get("toy-nli")), False)
    whole = training_flops(shape, Rows([5, 9, 30]), RANK)
    parts = [training_flops(shape, Rows([length]), RANK) for length in (5, 9, 30)]
    assert whole.full == sum(part.full for part in parts) and whole.needed == sum(part.needed for part in parts)
    assert whole.needed < whole.full


def test_a_row_of_one_token_that_is_read_needs_everything():
    shape = shape_of(load_config(locate("tiny:bert"), TASKS.get("toy-nli")), False)
    flops = training_flops(shape, Rows([1, 1]), RANK)
    assert flops.full == flops.needed


def test_a_generator_reads_the_tokens_before_those_it_learns():
    shape = shape_of(load_config(locate("tiny:llama"), TASKS.get("toy-nlg")), True)
    one, two = (forward_flops(shape, Rows([10], learned=[count]), RANK).needed for count in (1, 2))
    token = 2 * shape.hidden * (2 * shape.attention + 3 * shape.intermediate + shape.outputs)
    lora, pairs = 2 * RANK * (shape.hidden + shape.attention), 8  # the token at place 7 sees eight
    assert two - one == token + lora + 4 * pairs * shape.attention


def test_an_unknown_architecture_is_not_counted():
    class Config:
        model_type = "mamba"

    assert shape_of(Config(), False) is None


def test_median_and_quartiles():
    measured = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (measured.median, measured.low, measured.high, measured.rounds) == (3, 2, 4, 5)
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]).median == 2


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [1, 2, 4, 8]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_each_variant_is_as_often_first_as_last():
    used = orders(["a", "b", "c"], 6)
    assert used[:2] == [["a", "b", "c"], ["c", "a", "b"]]
    assert len({tuple(order) for order in used}) == 6
    for place in range(3):
        assert sorted(order[place] for order in used) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("name", "task", "weights"),
    [
        ("shape:roberta-base", "rte", 124_647_170),
        ("shape:roberta-large", "rte", 355_361_794),
        ("shape:llama-2-7b", "e2e", 6_738_415_616),
    ],
)
def test_shapes_have_the_sizes_of_the_published_models(name, task, weights):
    assert sum(weight.numel() for weight in load_meta_model(locate(name), TASKS.get(task)).parameters()) == weights


def test_lora_on_the_shape_of_roberta_base_has_the_published_parameters():
    method = METHODS.get("lora")
    model = method.build(load_meta_model(locate("shape:roberta-base"), TASKS.get("rte")), MethodConfig(), 0, None)
    assert method.count(model).adapter == 294_912


def test_a_shape_has_a_tokenizer_whose_ids_it_knows():
    for name in ("shape:roberta-base", "shape:llama-2-7b"):
        tokenizer = load_tokenizer(locate(name))
        encoded = tokenizer("one sentence", "and another")
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert tokenizer.eos_token_id is not None
        assert len(tokenizer) <= load_config(locate(name), TASKS.get("rte")).vocab_size


def test_an_unknown_shape_is_said():
    with pytest.raises(UserError, match="Did you mean 'shape:roberta-base'"):
        locate("shape:roberta-bas")
