"""Adapters as people make them: scored as they act, or refused by name before any pass over the data."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from models import acting_scores
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import lora_drop
from lora_drop.errors import UserError
from lora_drop.files import file_digest
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.sharing import ties

BASE = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}


def bert(layers: int = 4, kind: str = "bert", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    config = AutoConfig.for_model(
        kind, vocab_size=200, num_hidden_layers=layers, pad_token_id=0, **{**sizes, **options}
    )
    return AutoModelForSequenceClassification.from_config(config)


def batch(seed: int = 1, rows: int = 6, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 199, (rows, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.zeros(rows, dtype=torch.long)}


def fill(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.05, generator=generator)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha_pattern": {"layer.3.attention.self.query": 64}},
        {"rank_pattern": {"layer.3.attention.self.query": 2}},
        {"use_rslora": True, "rank_pattern": {"layer.1.attention.self.value": 2}},
        {"lora_bias": True},
        {"layers_to_transform": [1, 3]},
        {"target_modules": "all-linear"},
        {"target_modules": ["attention.output.dense", "query"]},
        {"init_lora_weights": "gaussian"},
        {"bias": "lora_only"},
    ],
)
def test_scores_are_what_the_layer_adds(options):
    model = fill(get_peft_model(bert(), LoraConfig(**{**BASE, **options})))
    batches = [batch(1), batch(2)]
    everything = options.get("target_modules") == "all-linear"
    with pytest.warns(UserWarning, match=r"not scored: bert\.pooler\.dense\.") if everything else nullcontext():
        scores = lora_drop.score(model, batches)
    acting = acting_scores(model, batches)
    assert {row.name: row.score for row in scores.rows} == pytest.approx(
        {name: value for name, value in acting.items() if name not in scores.left_out}, rel=1e-5
    )
    assert scores.left_out == (("bert.pooler.dense",) if everything else ())


def test_a_scale_that_was_set_by_hand_counts():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    loras(model)["bert.encoder.layer.2.attention.self.value"].layer.set_scale("default", 5.0)
    assert {row.name: row.score for row in lora_drop.score(model, [batch()]).rows} == pytest.approx(
        acting_scores(model, [batch()]), rel=1e-5
    )


def with_second_adapter(model):
    model.add_adapter("second", LoraConfig(r=4, target_modules=["query"]))
    model.base_model.set_adapter(["default", "second"])
    return model


REFUSED = {
    "DoRA": lambda: get_peft_model(bert(), LoraConfig(use_dora=True, **BASE)),
    "'pissa'": lambda: get_peft_model(bert(), LoraConfig(init_lora_weights="pissa", **BASE)),
    "'olora'": lambda: get_peft_model(bert(), LoraConfig(init_lora_weights="olora", **BASE)),
    "adalora": lambda: get_peft_model(bert(), AdaLoraConfig(total_step=10, init_r=8, target_modules=["query"])),
    "vera": lambda: get_peft_model(bert(), VeraConfig(target_modules=["query"])),
    "2 active adapters": lambda: with_second_adapter(get_peft_model(bert(), LoraConfig(r=8, target_modules=["query"]))),
    "merged": lambda: _merged(get_peft_model(bert(), LoraConfig(**BASE))),
    "switched off": lambda: _off(get_peft_model(bert(), LoraConfig(**BASE))),
    "target_parameters": lambda: get_peft_model(
        bert(), LoraConfig(r=4, target_parameters=["0.attention.self.query.weight"], target_modules=[])
    ),
}


def _merged(model):
    model.merge_adapter()
    return model


def _off(model):
    model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_scaling_b_a_is_refused_before_any_pass(what):
    selection = lora_drop.select(lora_drop.score(fill(get_peft_model(bert(), LoraConfig(**BASE))), [batch()]))
    model = REFUSED[what]()
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(UserError, match=what):
        lora_drop.score(model, [batch()])
    with pytest.raises(UserError, match=what):
        lora_drop.share(model, selection)
    assert not passes


def test_only_the_active_adapter_is_scored_and_tied():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.5)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    before = model.eval()(**inputs).logits
    model.add_adapter("second", LoraConfig(**{**BASE, "lora_alpha": 32}))
    model.set_adapter("second")
    lora_drop.share(model, selection)
    assert len(ties(model)) == 2
    assert {lora.scaling for lora in loras(model).values()} == {4}
    model.set_adapter("default")
    assert ties(model) == [] and torch.equal(model.eval()(**inputs).logits, before)


@pytest.mark.parametrize("policy", ["threshold", "top"])
def test_without_share_the_loras_of_low_layers_are_removed(policy, tmp_path):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.5, policy=policy, share=False)
    assert lora_drop.share(model, selection) is model
    retained = {
        f"bert.encoder.layer.{layer}.attention.self.{projection}"
        for projection, layers in selection.projections.items()
        for layer in layers.retained
    }
    assert set(loras(model)) == retained
    assert sum(lora.parameters for lora in loras(model).values()) == selection.trainable_parameters
    model.save_pretrained(tmp_path)
    loaded = lora_drop.pruning.adapters.loras(type(model).from_pretrained(bert(), tmp_path))
    assert set(loaded) == retained


def test_other_loras_are_kept_where_low_layers_lose_theirs(tmp_path):
    """On embeddings, which are in no layer; and biases are trained only where they are saved."""
    options = {**BASE, "target_modules": ["query", "value", "word_embeddings"], "bias": "lora_only"}
    model = fill(get_peft_model(bert(), LoraConfig(**options)))
    with pytest.warns(UserWarning, match="word_embeddings"):
        selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.6, share=False)
    with pytest.warns(UserWarning, match="word_embeddings"):
        lora_drop.share(model, selection)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.ones_like(parameter).cumsum(0).cos())
    model.save_pretrained(tmp_path)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    loaded = type(model).from_pretrained(bert(), tmp_path)
    assert torch.equal(loaded.eval()(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.parametrize("learns", [False, True])
def test_another_adapter_stays_as_it_is_where_low_layers_lose_theirs(learns, tmp_path):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.5, share=False)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    alone = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    expected = lora_drop.share(alone, selection).eval()(**inputs).logits
    model.add_adapter("other", LoraConfig(**BASE))
    torch.nn.init.ones_(loras(model)["bert.encoder.layer.0.attention.self.query"].layer.lora_B["other"].weight)
    theirs = [parameter.requires_grad_(learns) for name, parameter in model.named_parameters() if "other" in name]
    before = [parameter.clone() for parameter in theirs]
    lora_drop.share(model, selection)
    assert all(parameter.requires_grad == learns for parameter in theirs)
    assert model.get_model_status().active_adapters == ["default"] and set(loras(model)) == set(loras(alone))
    assert torch.equal(model.eval()(**inputs).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(bert(), tmp_path)
    assert torch.equal(loaded.eval()(**inputs).logits, expected)
    model.set_adapter("other")
    assert len(loras(model)) == 8 and all(map(torch.equal, before, theirs))
    assert not torch.allclose(model(**inputs).logits, expected)
    model.set_adapter("default")
    torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, expected)


def trained(model) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("modules", "left_out", "size"),
    [
        ("all-linear", "bert.pooler.dense", 8 * (32 + 32)),
        (["query", "word_embeddings"], "bert.embeddings.word_embeddings", 8 * (200 + 32)),
    ],
)
@pytest.mark.parametrize("shares", [True, False])
def test_a_lora_outside_the_layers_is_named_and_counted_apart(modules, left_out, size, shares):
    model = fill(get_peft_model(bert(), LoraConfig(**{**BASE, "target_modules": modules})))
    with pytest.warns(UserWarning, match=f"not scored: {left_out}") as told:
        scores = lora_drop.score(model, [batch()])
    assert scores.left_out == (left_out,) and len(told) == 1
    selection = lora_drop.select(scores, threshold=0.5, share=shares)
    counts = f"trains {size:,} parameters there, besides the {selection.trainable_parameters:,} of the selection"
    with pytest.warns(UserWarning, match=f"{left_out}: .* {counts}") as told:
        lora_drop.share(model, selection)
    assert trained(model) == selection.trainable_parameters + size and len(told) == 1


UNCOUNTED = {
    "4 LoRAs of the model .*: bert.encoder.layer.0.attention.self.key, .* and 1 more": {
        "target_modules": ["query", "key", "value"]
    },
    "scored by an adapter of rank 8, whose .* have rank 16: .* Use r=8": {"r": 16},
    r"other sizes\. Use the same r, rank_pattern and": {"rank_pattern": {"layer.3.attention.self.query": 2}},
    "lora_bias in the model's LoraConfig": {"lora_bias": True},
}


@pytest.mark.parametrize("what", UNCOUNTED)
@pytest.mark.parametrize("shares", [True, False])
def test_what_the_selection_has_not_counted_is_not_shared(what, shares):
    scores = lora_drop.score(fill(get_peft_model(bert(), LoraConfig(**BASE))), [batch()])
    selection = lora_drop.select(scores, threshold=0.5, policy="top", share=shares)
    model = get_peft_model(bert(), LoraConfig(**{**BASE, **UNCOUNTED[what]}))
    before = trained(model)
    with pytest.raises(UserError, match=what):
        lora_drop.share(model, selection)
    assert trained(model) == before and ties(model) == []
    fresh = get_peft_model(bert(), LoraConfig(**BASE))
    assert trained(lora_drop.share(fresh, selection)) == selection.trainable_parameters


def test_scores_are_no_selection():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    with pytest.raises(UserError, match=r"share needs the Selection .* given a Scores\. Make one: lora_drop\.select"):
        lora_drop.share(model, lora_drop.score(model, [batch()]))
    assert ties(model) == []


def test_sizes_that_differ_alike_are_counted():
    options = {**BASE, "rank_pattern": {"layer.3.attention.self.query": 2}, "lora_bias": True}
    scores = lora_drop.score(fill(get_peft_model(bert(), LoraConfig(**options))), [batch()])
    selection = lora_drop.select(scores, threshold=0.5, policy="top")
    model = lora_drop.share(get_peft_model(bert(), LoraConfig(**options)), selection)
    assert trained(model) == selection.trainable_parameters < len(scores.rows) * 8 * 64


def test_layers_that_share_already_are_not_shared_otherwise():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    scores = lora_drop.score(model, [batch()])
    few, many = (lora_drop.select(scores, threshold=threshold) for threshold in (0.5, 0.95))
    lora_drop.share(model, many)
    before = ties(model)
    lora_drop.share(model, many)
    assert ties(model) == before
    lora_drop.share(model, few)  # which lets more layers share
    shared = ties(model)
    assert sum(map(len, shared)) > sum(map(len, before))
    for other in (many, lora_drop.select(scores, threshold=0.5, share=False)):
        with pytest.raises(UserError, match="already share a LoRA under another selection"):
            lora_drop.share(model, other)
        assert ties(model) == shared


@pytest.mark.parametrize(
    ("option", "what"), [("rank_pattern", "ranks"), ("alpha_pattern", r"scalings \(alpha / rank\)")]
)
def test_nothing_is_shared_if_a_projection_cannot_be(option, what):
    uneven = {"layer.3.attention.self.value": 2, "layer.2.attention.self.value": 4}
    model = fill(get_peft_model(bert(), LoraConfig(**BASE, **{option: uneven})))
    selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.2)
    with pytest.raises(UserError, match=f"different {what}"):
        lora_drop.share(model, selection)
    assert ties(model) == []


@pytest.mark.parametrize("how", ["whole", "in place", "by layer"])
def test_a_model_that_was_compiled_and_used_is_scored(how):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    expected = lora_drop.score(model, [batch()])
    if how == "by layer":
        for layer in model.base_model.model.bert.encoder.layer:
            layer.compile(backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    used = torch.compile(model, backend="eager") if how == "whole" else model
    with torch.no_grad():
        used.eval()(**batch())
    assert lora_drop.score(used, [batch()]).rows == expected.rows
    with torch.no_grad():
        used(**batch())


def test_new_tokens_are_no_rival_of_a_lora():
    options = {**BASE, "trainable_token_indices": {"word_embeddings": [5, 6]}}
    model = fill(get_peft_model(bert(), LoraConfig(**options)))
    plain = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    assert lora_drop.score(model, [batch()]).rows == lora_drop.score(plain, [batch()]).rows


@pytest.mark.parametrize("criterion", ["output", "fisher"])
@pytest.mark.parametrize(
    ("batches", "what"),
    [
        (batch(), "is str"),
        ([tuple(batch().values())], "is tuple"),
        ([{}], "is a dict without"),
        ([{"input_ids": [[5]]}], "is a dict without"),
        ([{"text": ["good"], "labels": torch.tensor([1])}], "is a dict without tensors of inputs"),
    ],
)
def test_what_is_no_batch_is_said(batches, what, criterion):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    with pytest.raises(UserError, match=what):
        lora_drop.score(model, batches, criterion=criterion)


def test_rows_of_padding_alone_count_as_nothing():
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    some, rows = batch(), len(batch()["input_ids"])
    more = {name: torch.cat([tensor, torch.zeros_like(tensor)]) for name, tensor in some.items()}
    for criterion in ("output", "output_relative"):
        found, twice = (lora_drop.score(model, [each], criterion=criterion).rows for each in (some, more))
        assert [2 * row.score for row in twice] == pytest.approx([row.score for row in found], rel=1e-5), rows


def test_a_layer_called_many_times_is_scored_by_all_its_calls():
    albert = bert(layers=3, kind="albert", embedding_size=16)
    model = fill(get_peft_model(albert, LoraConfig(**BASE)))
    scores = lora_drop.score(model, [batch()], per_example=True)
    assert {row.name: row.score for row in scores.rows} == pytest.approx(acting_scores(model, [batch()]), rel=1e-5)
    for row in scores.rows:
        assert len(scores.norms[row.name]) == 6
        assert sum(scores.norms[row.name]) / 6 == pytest.approx(row.score, rel=1e-5)


@pytest.mark.parametrize(("rows", "length"), [(6, 12), (1, 16), (16, 16), (1, 12)])
def test_relative_positions_are_no_tokens(rows, length):
    """DeBERTa's query also sees its 16 relative positions here, as one row: no shape of a batch may make tokens of them."""
    options = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 8}
    deberta = bert(kind="deberta-v2", max_relative_positions=64, norm_rel_ebd="layer_norm", **options)
    model = fill(get_peft_model(deberta, LoraConfig(**{**BASE, "target_modules": ["query_proj", "value_proj"]})))
    ids = torch.randint(5, 199, (rows, length), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert {row.name: row.score for row in lora_drop.score(model, [inputs, inputs]).rows} == pytest.approx(
        acting_scores(model, [inputs, inputs], first_call_only=True), rel=1e-5
    )


def test_an_encoder_decoder_counts_the_tokens_of_each_stack():
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    config = AutoConfig.for_model(
        "bart", vocab_size=200, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    from transformers import AutoModelForSeq2SeqLM

    model = fill(
        get_peft_model(AutoModelForSeq2SeqLM.from_config(config), LoraConfig(target_modules=["q_proj", "v_proj"]))
    )
    inputs = batch(length=10)
    labels = batch(seed=4, length=10)["input_ids"].masked_fill(torch.arange(10) >= 4 + torch.arange(6)[:, None], -100)
    wide = {**inputs, "labels": torch.nn.functional.pad(labels, (0, 3), value=-100)}
    narrow, padded = (
        lora_drop.score(model, [{**inputs, "labels": wide["labels"][:, :width].contiguous()}]) for width in (10, 13)
    )
    assert [row.score for row in padded.rows] == pytest.approx([row.score for row in narrow.rows], rel=1e-5)
    assert len({row.projection for row in padded.rows}) == 6


def test_images_embeddings_and_nested_batches():
    config = AutoConfig.for_model(
        "vit",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
    )
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    vit = fill(
        get_peft_model(
            AutoModelForImageClassification.from_config(config),
            LoraConfig(target_modules=["q_proj", "v_proj", "query", "value"]),
        )
    )
    images = {"pixel_values": torch.randn(3, 3, 8, 8)}
    scores = lora_drop.score(vit, [images])
    assert (scores.examples, scores.tokens) == (3, 3 * 5)
    assert {row.name: row.score for row in scores.rows} == pytest.approx(acting_scores(vit, [images]), rel=1e-5)

    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    ids = batch()
    embeds = {
        "inputs_embeds": model.get_input_embeddings()(ids["input_ids"]).detach(),
        "attention_mask": ids["attention_mask"],
    }
    assert [row.score for row in lora_drop.score(model, [embeds]).rows] == pytest.approx(
        [row.score for row in lora_drop.score(model, [ids]).rows], rel=1e-5
    )


class Expert(torch.nn.Module):
    """Sees the tokens that a router sends to it."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(32, 32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        chosen = hidden.flatten(0, -2)[::2]
        return hidden + self.up(chosen).mean()


def test_an_expert_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama", vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
    )
    for layer in model.model.layers:
        layer.mlp = Expert()
    model = fill(get_peft_model(model, LoraConfig(target_modules=["q_proj", "up"])))
    with pytest.raises(UserError, match=r"layers.0.mlp.up is called with inputs of shape .* leave it out"):
        lora_drop.score(model, [batch()])


def test_nothing_in_a_block():
    model = get_peft_model(bert(), LoraConfig(target_modules=["pooler.dense"]))
    with pytest.raises(UserError, match="inside a numbered block"):
        lora_drop.score(model, [batch()])


@pytest.mark.slow
def test_the_bytes_of_an_adapter_do_not_depend_on_the_order_of_sets(tmp_path):
    code = (
        "import sys, pathlib; from models import backbone, method; from lora_drop.registry import METHODS\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir()\n"
        "METHODS.get('lora').save(method('lora', backbone()[0]), folder)\n"
    )
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env=environment, check=True)
        digests.add(file_digest(tmp_path / seed))
    assert len(digests) == 1
