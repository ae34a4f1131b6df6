"""Each criterion against its definition, written out in float64."""

import numpy as np
import pytest
import torch
from models import inputs, trained_lora
from test_importance import split

import lora_drop
from lora_drop.errors import UserError
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.criteria.activation import explained
from lora_drop.pruning.criteria.base import Criterion, Measured
from lora_drop.pruning.importance import score
from lora_drop.pruning.selection import select
from lora_drop.pruning.sharing import tie
from lora_drop.registry import CRITERIA

ADDITIVE = ("output", "output_relative", "fisher")


def labelled(tokenizer, count=9):
    batch = inputs(tokenizer, count)
    return {**batch, "labels": torch.arange(count) % 2}


def reads_of(model, batch) -> dict[str, torch.Tensor]:
    """The input of every LoRA, float64, one row per real token, and which example it belongs to."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        lora.layer.register_forward_pre_hook(
            lambda _module, args, name=name: seen.__setitem__(name, args[0].detach().double())
        )
        for name, lora in loras(model).items()
    ]
    model.eval()
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def output_relative(model, batch):
    mask, found = batch["attention_mask"].unsqueeze(-1), {}
    for name, x in reads_of(model, batch).items():
        layer = loras(model)[name].layer
        down, up = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
        moved = (layer.scaling["default"] * x @ down.T @ up.T * mask).square().sum(dim=(1, 2))
        frozen = (x @ layer.base_layer.weight.detach().double().T * mask).square().sum(dim=(1, 2))
        found[name] = float((moved / frozen).mean())
    return found


def activation(model, batch):
    found = {}
    for name, x in reads_of(model, batch).items():
        tokens = x[batch["attention_mask"] != 0]
        variances = torch.linalg.svdvals(tokens - tokens.mean(dim=0)).square()
        found[name] = float(variances[:8].sum() / variances.sum())
    return found


def weight(model, batch):
    return {
        name: float(
            lora.layer.scaling["default"]
            * torch.linalg.matrix_norm(
                lora.layer.lora_B["default"].weight.detach().double()
                @ lora.layer.lora_A["default"].weight.detach().double()
            )
        )
        for name, lora in loras(model).items()
    }


def losses_by_row(model, batch):
    model.double().eval()
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def products_by_row(model, batch):
    """θ · ∂Lₙ/∂θ of each pair, one entry per example."""
    pairs = {name: lora.tensors for name, lora in loras(model).items()}
    rows = []
    for loss in losses_by_row(model, batch):
        rows.append(
            {
                name: [
                    each.detach() * gradient
                    for each, gradient in zip(pair, torch.autograd.grad(loss, pair, retain_graph=True), strict=True)
                ]
                for name, pair in pairs.items()
            }
        )
    return rows


def gradient(model, batch):
    rows = products_by_row(model, batch)
    return {
        name: sum(
            float(torch.stack(each).mean(0).abs().sum()) for each in zip(*(row[name] for row in rows), strict=True)
        )
        for name in rows[0]
    }


def fisher(model, batch):
    rows = products_by_row(model, batch)
    return {name: sum(float(each.square().sum()) for row in rows for each in row[name]) / len(rows) for name in rows[0]}


REFERENCES = {
    "output_relative": output_relative,
    "activation": activation,
    "weight": weight,
    "gradient": gradient,
    "fisher": fisher,
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize(("backbone", "size"), [("tiny:bert", 4), ("tiny:llama", 64)])
def test_a_criterion_is_what_its_formula_says(name, backbone, size):
    model, tokenizer = trained_lora(backbone)
    batch = labelled(tokenizer)
    scores = score(model, split(batch, size), criterion=CRITERIA.get(name))
    expected = REFERENCES[name](model, batch)
    assert {row.name: row.score for row in scores.rows} == pytest.approx(expected, rel=2e-4)
    assert scores.criterion == name and len(set(expected.values())) > 1


@pytest.mark.parametrize("name", CRITERIA.own)
def test_all_criteria_give_what_a_selection_needs_and_leave_the_model_as_it_was(name):
    model, tokenizer = trained_lora()
    model.train()
    before = {key: (value.requires_grad, value.grad is None) for key, value in model.named_parameters()}
    batch = labelled(tokenizer)
    seen = []
    criterion = CRITERIA.get(name)
    scores = score(model, split(batch, 4), criterion=criterion, per_example=True, progress=seen.append)
    assert model.training and before == {
        key: (value.requires_grad, value.grad is None) for key, value in model.named_parameters()
    }
    assert [row.layer for row in scores.rows if row.projection == "query"] == [0, 1, 2, 3]
    assert sum(row.importance for row in scores.rows) == pytest.approx(2)
    assert select(scores, 0.5).trainable_parameters > 0
    assert criterion.additive == (name in ADDITIVE) == (scores.norms is not None)
    for row in scores.rows if criterion.additive else ():
        assert sum(scores.norms[row.name]) / 9 == pytest.approx(row.score, rel=1e-5)
    assert (scores.examples, scores.tokens) == ((9, int(batch["attention_mask"].sum())) if criterion.reads else (0, 0))
    assert (seen[-1:] == [9]) == criterion.reads


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart"])
def test_the_loss_of_a_text_is_the_sum_over_its_learned_tokens(kind):
    """However a batch is split, the gradient is that of the whole; of decoders that shift the labels, and one that does not."""
    from models import randomise_b
    from transformers import BartConfig, BartForCausalLM, GPT2Config, GPT2LMHeadModel

    from lora_drop.config.schema import MethodConfig
    from lora_drop.methods.lora import add_lora
    from lora_drop.models.backbones import load_model, load_tokenizer, locate
    from lora_drop.pruning.places import find_places
    from lora_drop.registry import TASKS

    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located, causal=True)
    torch.manual_seed(0)
    size, width = len(tokenizer), {"decoder_ffn_dim": 32, "decoder_layers": 2, "decoder_attention_heads": 2}
    backbone = {
        "llama": lambda: load_model(located, TASKS.get("toy-nlg"), 0, tokenizer),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2)),
        "bart": lambda: BartForCausalLM(BartConfig(vocab_size=size, d_model=16, **width)),
    }[kind]()
    places = [place for place in find_places(backbone) if "encoder_attn" not in place.name]  # which reads no encoder
    model = add_lora(backbone, MethodConfig(), 0, places)
    randomise_b(model, 0)
    batch = inputs(tokenizer)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    criterion = CRITERIA.get("gradient")
    whole, parts = (score(model, split(batch, size), criterion=criterion).rows for size in (7, 2))
    assert [row.score for row in parts] == pytest.approx([row.score for row in whole], rel=1e-3)
    pairs = {name: lora.tensors for name, lora in loras(model).items()}
    logits = model.double().eval()(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits
    labels = batch["labels"]
    if kind != "bart":
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 7
    for row in whole:
        pair = pairs[row.name]
        gradients = torch.autograd.grad(loss, pair, retain_graph=True)
        expected = sum(
            float((each.detach() * gradient).abs().sum()) for each, gradient in zip(pair, gradients, strict=True)
        )
        assert row.score == pytest.approx(expected, rel=1e-3)


def test_random_scores_follow_the_seed():
    model, _ = trained_lora()
    criterion = CRITERIA.get("random")
    one, again, other = (
        [row.score for row in score(model, [], criterion=criterion, seed=seed).rows] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_layers_that_share_a_pair_have_its_score_each():
    model, tokenizer = trained_lora()
    names = [name for name in loras(model) if "query" in name][:2]
    tie(loras(model), names)
    scores = {
        row.name: row.score for row in score(model, [labelled(tokenizer)], criterion=CRITERIA.get("gradient")).rows
    }
    assert scores[names[0]] == scores[names[1]] > 0


@pytest.mark.parametrize("name", ["gradient", "fisher"])
def test_labels_that_are_missing_are_asked_for(name):
    model, tokenizer = trained_lora()
    learns = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(UserError, match="no labels"):
        score(model, [inputs(tokenizer)], criterion=CRITERIA.get(name))
    assert [parameter.requires_grad for parameter in model.parameters()] == learns


@pytest.mark.parametrize("name", [name for name in CRITERIA.own if CRITERIA.get(name).reads])
def test_no_data_is_said(name):
    model, _ = trained_lora()
    with pytest.raises(UserError, match="no rows"):
        score(model, [], criterion=CRITERIA.get(name))


@pytest.mark.parametrize("name", ["output", "output_relative", "activation"])
def test_padding_alone_is_no_data(name):
    model, tokenizer = trained_lora()
    batch = inputs(tokenizer)
    with pytest.raises(UserError, match="attention_mask is 0 at every token"):
        score(model, [{**batch, "attention_mask": batch["attention_mask"] * 0}], criterion=CRITERIA.get(name))


@pytest.mark.parametrize("name", [name for name in CRITERIA.own if CRITERIA.get(name).reads])
def test_the_caller_may_be_in_inference_mode(name):
    model, tokenizer = trained_lora()
    expected = score(model, [labelled(tokenizer)], criterion=CRITERIA.get(name))
    with torch.inference_mode():
        copies = {key: value.clone() for key, value in labelled(tokenizer).items()}
        assert score(model, [copies], criterion=CRITERIA.get(name)) == expected


BROKEN = {
    "returned a dict": lambda given: dict.fromkeys(given.layers, 1.0),
    "returned a NoneType": lambda given: None,
    "gave .*layer.0.* no number but NoneType": lambda given: Measured({"x": 1.0}, 1),
    "gave .*layer.0.* no number but Tensor": lambda given: Measured(dict.fromkeys(given.layers, torch.ones(2)), 1),
    "has not counted the rows .* needs reads=False": lambda given: Measured(dict.fromkeys(given.layers, 1.0)),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_mistake_in_a_criterion_is_said(text):
    model, tokenizer = trained_lora()
    with pytest.raises(UserError, match=f"criterion 'mine' {text}"):
        lora_drop.score(model, [inputs(tokenizer)], criterion=Criterion("mine", "", BROKEN[text]))


@pytest.mark.parametrize("number", [np.float32, torch.tensor])
def test_a_criterion_may_return_numbers_of_other_libraries(number, tmp_path):
    def measure(given):
        return Measured({name: number(float(lora.up.norm())) for name, lora in given.layers.items()})

    model, _ = trained_lora()
    scores = lora_drop.score(model, [], criterion=Criterion("mine", "", measure, reads=False))
    scores.save(tmp_path / "scores.json")
    assert lora_drop.Scores.load(tmp_path / "scores.json") == scores
    assert {type(row.score) for row in scores.rows} == {float}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([], None), "a PEFT model and an iterable of batches, but was given a list and a NoneType"),
        ((torch.nn.Linear(1, 1), 3), "given a Linear and a int"),
    ],
)
def test_what_is_no_model_and_no_data_is_said(arguments, text):
    with pytest.raises(UserError, match=text):
        lora_drop.score(*arguments)


def test_the_projection_that_was_not_trained_is_named():
    model, tokenizer = trained_lora()
    for name, parameter in model.named_parameters():
        if "value.lora_B" in name:
            parameter.data.zero_()
    with pytest.raises(UserError, match="All scores of value are 0: the LoRA was not trained"):
        score(model, [inputs(tokenizer)])


def test_explained_variance_of_known_data():
    x = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)  # variances 4.5 and 0.5
    rows = torch.cat([x, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    assert explained(rows.T @ rows, 1) == pytest.approx(0.9)
    assert explained(rows.T @ rows, 8) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "mpnet", "deberta"])
@pytest.mark.parametrize("name", ["output_relative", "activation"])
def test_a_criterion_is_the_same_without_padding(kind, name):
    from test_own_attention import adapted
    from test_packing import labelled as of_any_length
    from test_packing import prepare

    model = adapted(kind)
    batch = of_any_length(trained_lora("tiny:bert")[1], 9)
    packing, how = prepare(model, of_any_length(trained_lora("tiny:bert")[1], 3))
    assert packing is not None, how
    stock, packed = (score(model, [batch], criterion=CRITERIA.get(name), packing=given) for given in (None, packing))
    assert [row.score for row in packed.rows] == pytest.approx([row.score for row in stock.rows], rel=1e-4)
    assert stock.tokens == packed.tokens


def test_the_relative_output_ignores_the_bias_of_the_frozen_matrix():
    model, tokenizer = trained_lora("tiny:bert")
    batch, criterion = inputs(tokenizer), CRITERIA.get("output_relative")
    last = [row.name for row in score(model, [batch]).rows][-1]  # its output moves no other layer's input
    before = {row.name: row.score for row in score(model, [batch], criterion=criterion).rows}[last]
    with torch.no_grad():
        model.get_base_model().get_submodule(last).base_layer.bias.fill_(3.0)
    after = {row.name: row.score for row in score(model, [batch], criterion=criterion).rows}[last]
    assert after == pytest.approx(before, rel=1e-5)
