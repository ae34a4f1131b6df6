"""The numbers behind the benchmark: operations against closed formulas, products against float64, statistics against cases known exactly."""

import pytest
import torch
from bench.flops import training_flops
from bench.machine import fp32_products, generation, switch, title
from bench.products import Products, exact, fp32_ways
from bench.rounds import FEWEST, Rounds, interleave, spread
from torch.nn import functional

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.models.backbones import load_config, load_meta_model, load_tokenizer, locate
from lora_drop.registry import METHODS, TASKS

RANK = 4
LENGTHS = [5, 9, 9, 30]


def counted(name: str, task: str, lengths=LENGTHS) -> int:
    model = load_meta_model(locate(name), TASKS.get(task))
    model.set_attn_implementation("eager")
    adapted = METHODS.get("lora").build(model, MethodConfig(rank=RANK), 0, None)
    return training_flops(adapted, lengths, generates=TASKS.get(task).kind == "generation")


def layers_forward_and_backward(config, keys: int, matrices: int, length: int) -> int:
    """Operations of all layers: `keys` is the width of the keys and of the values, `matrices` those of the MLP."""
    d, f, t, layers = config.hidden_size, config.intermediate_size, length, config.num_hidden_layers
    attention = 2 * 2 * t * t * d
    after = 2 * t * d * (d + matrices * f)
    frozen = 2 * t * d * (d + 2 * keys)
    a, b = 2 * 2 * t * RANK * d, 2 * t * RANK * (d + keys)  # of query and value
    forward = frozen + a + b + attention + after
    backward = frozen + 2 * (a + b) + 2 * attention + after
    # nothing is trained before the first layer: no gradient of its inputs, nor of its keys
    return layers * (forward + backward) - (frozen + a + attention // 2)


@pytest.mark.parametrize("name", ["tiny:bert", "packaged:minilm-l6"])
def test_operations_of_a_bert_are_those_of_the_formula(name):
    config = load_config(locate(name), TASKS.get("toy-nli"))
    pooler, classifier = 2 * config.hidden_size**2, 2 * config.hidden_size * config.num_labels
    head = 2 * pooler + 3 * classifier  # the pooler is frozen, the classifier trained
    expected = sum(layers_forward_and_backward(config, config.hidden_size, 2, length) + head for length in LENGTHS)
    assert counted(name, "toy-nli") == expected


@pytest.mark.parametrize(("name", "lengths"), [("tiny:llama", LENGTHS), ("shape:llama-2-7b", [7])])
def test_operations_of_a_llama_are_those_of_the_formula(name, lengths):
    config = load_config(locate(name), TASKS.get("toy-nlg"))
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    head = 2 * 2 * config.hidden_size * config.vocab_size  # frozen, on every token
    expected = sum(layers_forward_and_backward(config, keys, 3, length) + head * length for length in lengths)
    assert counted(name, "toy-nlg", lengths) == expected


def test_median_and_quartiles():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3, "low": 2, "high": 4}


def test_ratios_are_taken_round_by_round():
    rounds = Rounds({"slow": [2.0, 6.0, 4.0], "fast": [1.0, 2.0, 4.0]}, [], [0.1, 0.3, 0.0])
    assert rounds.ratio("slow", "fast")["median"] == 2
    assert rounds.rate("fast", 8)["median"] == 4
    assert rounds.to_json()["noisy_rounds"] == [1]


def test_every_round_measures_everything_once_in_an_order_of_its_own():
    calls, told = [], []
    actions = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abcd"}
    found = interleave(actions, 3, lambda done, total: told.append((done, total)))
    assert calls[:4] == list("abcd")  # the warm-up, which is not counted
    assert [calls[4 * number :][:4] for number in (1, 2, 3)] == found.orders
    assert len({tuple(order) for order in found.orders}) == 3
    assert told[-1] == (16, 16) and {*range(5, 17)} == {one for each in found.seconds.values() for one in each}


def test_cpus_of_one_name_are_told_apart_by_their_generation(tmp_path):
    facts = tmp_path / "cpuinfo"
    facts.write_text("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n")
    assert generation(facts) == "family 26 model 2" and generation(tmp_path / "none") == ""
    machine = {"cpu": "AMD EPYC", "instructions": ["avx2", "avx512_bf16"], "threads": 2}
    assert title(machine) == title({**machine, "generation": ""}) == "AMD EPYC avx512_bf16, 2 threads"
    assert title({**machine, "generation": generation(facts)}) == "AMD EPYC family 26 model 2 avx512_bf16, 2 threads"


def test_a_slow_machine_measures_fewer_rounds_but_never_one_alone():
    found = interleave({"a": lambda: 1.0}, 5, lambda *_: None, limit=0)
    assert len(found.seconds["a"]) == len(found.orders) == len(found.load) == FEWEST == 2
    assert len(interleave({"a": lambda: 1.0}, 5, lambda *_: None, limit=60).load) == 5


def test_a_product_that_rounds_its_inputs_is_no_fp32_product():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 96, generator=draw), torch.randn(32, 96, generator=draw)
    rounding = {"bf16": lambda x, w: functional.linear(x.bfloat16(), w.bfloat16()).float()}
    split = {"halves": lambda x, w: functional.linear(x[:, :48], w[:, :48]) + functional.linear(x[:, 48:], w[:, 48:])}
    assert list(exact({**fp32_ways(), **split, **rounding}, x, w))[-1] == "halves"


def test_the_roof_is_the_best_of_all_products():
    products = Products(16, [(8, 8), (8, 32)], torch.float32, torch.device("cpu"))
    best = products()
    assert 1 / best == pytest.approx(max(products.fastest.values())) and "MKL" in products.fastest
    assert [tuple(w.shape) for _, w in products.matrices] == [(8, 8), (32, 8)]


@pytest.mark.skipif(switch() is None, reason="this torch has no switch")
def test_the_switch_is_restored_after_a_failure():
    before = switch().fp32_precision
    with pytest.raises(KeyError), fp32_products(onednn=True):
        assert switch().fp32_precision == "bf16"
        with fp32_products(onednn=False):
            assert switch().fp32_precision == "none"
        assert switch().fp32_precision == "bf16"
        raise KeyError
    assert switch().fp32_precision == before


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
