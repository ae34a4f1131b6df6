import pytest
import torch
from models import backbone, inputs, randomise_b, trained_lora
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from lora_drop.errors import UserError
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.criteria.base import Given
from lora_drop.pruning.importance import collect_moments, example_norms, numbered, score, token_gram
from lora_drop.pruning.sharing import tie
from lora_drop.registry import CRITERIA


def plain_scores(model, batch) -> dict[str, float]:
    """‖B A x‖² in float64, from the definition: keep every x, multiply, sum over real tokens, average over examples."""
    seen: dict[str, torch.Tensor] = {}
    layers = {name: lora.layer for name, lora in loras(model).items()}
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, name=name: seen.__setitem__(name, args[0].detach().double())
        )
        for name, layer in layers.items()
    ]
    model.eval()
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    found = {}
    for name, x in seen.items():
        layer = layers[name]
        down, up = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
        output = layer.scaling["default"] * x @ down.T @ up.T * batch["attention_mask"].unsqueeze(-1)
        found[name] = float(output.square().sum() / len(output))
    return found


def split(batch, size):
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for start in range(0, len(batch["input_ids"]), size)
    ]


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:roberta", "tiny:llama"])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_scores_equal_the_plain_form_in_float64(name, size):
    model, tokenizer = trained_lora(name)
    batch = inputs(tokenizer, 65)
    expected = plain_scores(model, batch)
    scores = score(model, split(batch, size))
    assert {row.name: row.score for row in scores.rows} == pytest.approx(expected, rel=1e-5)
    assert scores.examples == 65 and scores.tokens == int(batch["attention_mask"].sum())


def test_padding_does_not_count():
    model, tokenizer = trained_lora()
    batch = inputs(tokenizer)
    wide = dict(
        tokenizer.pad(
            {key: value.tolist() for key, value in batch.items()},
            padding="max_length",
            max_length=150,
            return_tensors="pt",
        )
    )
    assert [row.score for row in score(model, [wide]).rows] == pytest.approx(
        [row.score for row in score(model, [batch]).rows], rel=1e-5
    )


def test_importances_sum_to_one_per_projection():
    model, tokenizer = trained_lora()
    rows = score(model, [inputs(tokenizer)]).rows
    for projection in ("query", "value"):
        layers = [row for row in rows if row.projection == projection]
        assert [row.layer for row in layers] == [0, 1, 2, 3]
        assert sum(row.importance for row in layers) == pytest.approx(1)


def test_what_is_measured_on_parts_adds_up_to_the_whole():
    model, tokenizer = trained_lora()
    parts = split(inputs(tokenizer, 9), 4)
    first = []
    score(model, parts[:1], per_example=True, total=lambda measured: first.append(measured) or measured)
    added = score(model, parts[1:], per_example=True, total=lambda measured: first[0] + measured)
    whole = score(model, parts, per_example=True)
    assert [row.score for row in added.rows] == pytest.approx([row.score for row in whole.rows], rel=1e-12)
    assert (added.examples, added.tokens, added.norms) == (whole.examples, whole.tokens, whole.norms)


def test_norms_of_examples_average_to_the_score():
    model, tokenizer = trained_lora()
    scores = score(model, split(inputs(tokenizer, 9), 4), per_example=True)
    for row in scores.rows:
        assert len(scores.norms[row.name]) == 9
        assert sum(scores.norms[row.name]) / 9 == pytest.approx(row.score, rel=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_sums_are_of_fp32_while_the_model_is_computed_in_half_of_it(half):
    """In fp16 a sum over a batch would be infinite from 65,504 on."""
    z = 20 * torch.randn(8, 300, 4, generator=torch.Generator().manual_seed(0)).to(half)
    metric = torch.tensor([[2.0, 0.1], [0.1, 1.0]]).kron(torch.eye(2))
    flat, wide = z.flatten(0, 1).double(), z.double()
    with torch.autocast("cpu", half):
        torch.testing.assert_close(token_gram(z).double(), flat.T @ flat, rtol=1e-5, atol=1.0)
        expected = ((wide @ metric.double()) * wide).sum(dim=(1, 2))
        torch.testing.assert_close(example_norms(z, metric).double(), expected, rtol=1e-5, atol=0)


def test_layers_that_share_a_lora_are_scored_each_by_its_own_input():
    model, tokenizer = trained_lora()
    tie(loras(model), [name for name in loras(model) if "query" in name][:3])
    batch = inputs(tokenizer)
    assert {row.name: row.score for row in score(model, [batch]).rows} == pytest.approx(
        plain_scores(model, batch), rel=1e-5
    )


class Attending(nn.Module):
    """Layers of torch's attention, whose LoRA PEFT merges for each pass."""

    def __init__(self):
        super().__init__()
        attention = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": each}) for each in attention)

    def forward(self, inputs_embeds, attention_mask):
        x = inputs_embeds
        for layer in self.layers:
            x = layer["attention"](x, x, x, key_padding_mask=attention_mask == 0)[0]
        return x


def test_a_lora_that_is_merged_for_each_pass_is_scored_too():
    model = get_peft_model(Attending(), LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"inputs_embeds": torch.randn(2, 4, 16), "attention_mask": mask}
    expected = plain_scores(model, batch)
    found = {row.name: row.score for row in score(model, [batch]).rows}
    assert len(found) == 2 and found == pytest.approx(expected, rel=1e-5)
    first = next(iter(found))
    x, base = batch["inputs_embeds"], loras(model)[first].layer.base_layer
    frozen = (x @ base.in_proj_weight.T).square().sum(-1).masked_fill(mask == 0, 0).sum(-1)
    norms = torch.tensor(score(model, [batch], per_example=True).norms[first])
    relative = score(model, [batch], criterion=CRITERIA.get("output_relative")).rows[0].score
    assert relative == pytest.approx(float((norms / frozen).mean()), rel=1e-5)


def hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("length", [3, 5])
def test_labels_of_a_classifier_are_no_text_of_its_decoder(length):
    """Several labels a row look like tokens, above all where there are as many as tokens."""
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=2, num_labels=3, **sizes)
    torch.manual_seed(0)
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    model = get_peft_model(BartForSequenceClassification(config), adapter)
    randomise_b(model, 0)
    tokens = torch.randint(3, 40, (4, length))
    tokens[:, -1] = config.eos_token_id
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert score(model, [{**given, "labels": labels}]).rows == score(model, [given]).rows


def test_mode_and_hooks_are_restored_also_after_an_exception():
    model, tokenizer = trained_lora()
    model.train()
    model.base_model.model.classifier.eval()
    before = [module.training for module in model.modules()], hooks(model)
    score(model, [inputs(tokenizer)])
    assert ([module.training for module in model.modules()], hooks(model)) == before
    with pytest.raises(IndexError):
        score(model, [{"input_ids": torch.full((1, 4), 10**6), "attention_mask": torch.ones(1, 4, dtype=torch.long)}])
    assert ([module.training for module in model.modules()], hooks(model)) == before


def test_no_gradients_and_no_wide_buffers_are_left():
    model, tokenizer = trained_lora()
    moments = collect_moments(Given(model, numbered(model), [inputs(tokenizer)]))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {tuple(gram.shape) for gram in moments.gram.values()} == {(8, 8)}


def test_what_cannot_be_scored_is_said():
    plain, tokenizer = backbone()
    with pytest.raises(UserError, match="no LoRA to score"):
        score(plain, [inputs(tokenizer)])
    model, tokenizer = trained_lora()
    with pytest.raises(UserError, match="no rows"):
        score(model, [])
    for lora in loras(model).values():
        torch.nn.init.zeros_(lora.layer.lora_B["default"].weight)
    with pytest.raises(UserError, match="not trained"):
        score(model, [inputs(tokenizer)])


def test_shapes_are_checked():
    with pytest.raises(Exception, match="token_gram"):
        token_gram(torch.ones(3, 4))
    with pytest.raises(Exception, match="example_norms"):
        example_norms(torch.ones(2, 3, 4), torch.ones(5, 5))


def test_a_single_row_of_text_and_image_has_its_score():
    """Its patches are several, and its image one: neither is one per row, so the row cannot simply be repeated."""
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    sight = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    config = Qwen2VLConfig(
        text_config={**text, "vocab_size": 200, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={**sight, "mlp_ratio": 2, "temporal_patch_size": 2},
        **{"image_token_id": 150, "video_token_id": 151, "vision_start_token_id": 152, "vision_end_token_id": 153},
    )
    torch.manual_seed(0)
    modules = r".*language_model.*(q_proj|v_proj)"
    model = get_peft_model(Qwen2VLForConditionalGeneration(config), LoraConfig(r=2, target_modules=modules))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.tensor([[5, 6, 152, 150, 150, 150, 150, 153, 7, 8]])
    row = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 150).long(),
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    twice = {name: torch.cat([value, value]) for name, value in row.items()}
    one, two = score(model, [row]), score(model, [twice])
    assert (one.examples, one.tokens) == (1, 10)
    assert [each.score for each in one.rows] == pytest.approx([each.score for each in two.rows], rel=1e-5)
