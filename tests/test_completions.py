"""Prompts and completions as tokens: what is learned, what is cut, what is padding."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import CausalLMOutput

from lora_drop.data.completions import (
    IGNORED,
    Cut,
    encode_pairs,
    encode_prompts,
    leading,
    pair_collator,
    prompt_collator,
    token_loss,
)
from lora_drop.errors import UserError
from lora_drop.models.backbones import load_tokenizer, locate

TOKENIZER = load_tokenizer(locate("tiny:llama"), causal=True)
AWKWARD = ["", " ", "\r\n", "a\r\nb\r\n", "😀 naïve", "שלום עולם", "</s>", "word " * 5000]


def pairs(*rows):
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in rows], "completion": [text for _, text in rows]})


def learned(row):
    return TOKENIZER.decode([label for label in row["labels"] if label != IGNORED])


@pytest.fixture
def pad_is_end():
    """A tokenizer like SmolLM2's, which pads with the token that ends a text."""
    tokenizer = load_tokenizer(locate("tiny:llama"), causal=True)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_the_labels_are_the_completion_and_the_end_of_text():
    encoded, cut = encode_pairs(pairs(("name[The Eagle]\n", "The Eagle is here.")), TOKENIZER, 100)
    (row,) = encoded
    assert learned(row) == "The Eagle is here.</s>" and cut == Cut(0, 0)
    assert TOKENIZER.decode(row["input_ids"]) == "<s>name[The Eagle]\nThe Eagle is here.</s>"
    assert row["labels"].count(IGNORED) == 1 + len("name[The Eagle]\n")
    assert set(row["attention_mask"]) == {1}


def test_padding_is_known_by_length_where_it_is_the_end_of_text(pad_is_end):
    encoded, _ = encode_pairs(pairs(("ab", "xyz"), ("a", "x")), pad_is_end, 100)
    batch = pair_collator(pad_is_end)(list(encoded))
    end = pad_is_end.eos_token_id
    assert batch["input_ids"][1, -4:].tolist() == [end] * 4 and batch["attention_mask"][1].tolist() == [1] * 4 + [0] * 3
    assert [pad_is_end.decode(row[row != IGNORED]) for row in batch["labels"]] == ["xyz</s>", "x</s>"]
    assert (batch["labels"] == IGNORED).tolist() == [[True] * 3 + [False] * 4, [True] * 2 + [False] * 2 + [True] * 3]


def test_prompts_are_padded_on_the_left():
    encoded, _ = encode_prompts(Dataset.from_dict({"prompt": ["abc", "a"]}), TOKENIZER, 100)
    batch = prompt_collator(TOKENIZER)(list(encoded))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["input_ids"][1].tolist() == [0, 0, *encoded[1]["input_ids"]]


def test_a_long_prompt_loses_its_beginning_and_the_completion_stays():
    encoded, cut = encode_pairs(pairs(("dialogue " * 20 + "\nSummary:\n", "It is short.")), TOKENIZER, 40)
    text = TOKENIZER.decode(encoded[0]["input_ids"])
    assert cut == Cut(1, 0) and len(encoded[0]["input_ids"]) == 40
    assert text.startswith("<s>") and text.endswith("\nSummary:\nIt is short.</s>")
    prompts, cut = encode_prompts(Dataset.from_dict({"prompt": ["dialogue " * 20 + "\nSummary:\n"]}), TOKENIZER, 20)
    assert cut.prompts == 1 and TOKENIZER.decode(prompts[0]["input_ids"]).endswith("dialogue \nSummary:\n")


def test_texts_that_fit_exactly_are_not_cut():
    """A begin of text, four tokens of prompt, two of completion, an end of text: eight."""
    assert encode_pairs(pairs(("abcd", "xy")), TOKENIZER, 8)[1] == Cut(0, 0)
    assert encode_pairs(pairs(("abcd", "xy")), TOKENIZER, 7)[1] == Cut(1, 0)
    prompts = Dataset.from_dict({"prompt": ["abcd"]})
    assert [encode_prompts(prompts, TOKENIZER, length)[1].prompts for length in (5, 4)] == [0, 1]


def test_only_a_completion_that_is_too_long_by_itself_is_cut():
    encoded, cut = encode_pairs(pairs(("prompt", "a" * 100), ("prompt", "a" * 38)), TOKENIZER, 40)
    assert cut == Cut(2, 1)
    assert learned(encoded[0]) == "a" * 39 and learned(encoded[1]) == "a" * 38 + "</s>"
    assert encoded[0]["labels"][0] == IGNORED  # the first token of a completion is predicted from the one before


@given(st.text(max_size=60), st.text(max_size=60), st.integers(2, 80))
def test_nothing_is_longer_and_no_completion_is_cut_without_need(prompt, completion, limit):
    encoded, cut = encode_pairs(pairs((prompt, completion)), TOKENIZER, limit)
    row, whole = encoded[0], TOKENIZER(completion, add_special_tokens=False)["input_ids"]
    kept = [label for label in row["labels"] if label != IGNORED]
    assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"]) <= limit
    assert (kept == [*whole, TOKENIZER.eos_token_id]) == (cut.completions == 0) == (len(whole) + 2 <= limit)
    assert row["labels"][0] == IGNORED


def test_a_tokenizer_without_a_begin_of_text_gets_none():
    tokenizer = load_tokenizer(locate("tiny:llama"), causal=True)
    tokenizer.bos_token = None
    assert leading(TOKENIZER) == [1] and leading(tokenizer) == []
    encoded, _ = encode_pairs(pairs(("ab", "x" * 10)), tokenizer, 8)
    assert encoded[0]["labels"][0] == IGNORED  # the last token of the prompt stays, to predict from


def test_something_is_read_where_there_is_no_prompt():
    tokenizer = load_tokenizer(locate("tiny:llama"), causal=True)
    tokenizer.bos_token = None  # like SmolLM2's, which puts nothing before a text
    end = tokenizer.eos_token_id
    (prompt,), _ = encode_prompts(pairs(("", "x")), tokenizer, 20)
    assert prompt["input_ids"] == [end]
    (row,), _ = encode_pairs(pairs(("", "x")), tokenizer, 20)
    assert row["input_ids"][0] == end and row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_a_tokenizer_without_an_end_of_text_is_refused():
    tokenizer = load_tokenizer(locate("tiny:llama"), causal=True)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        encode_pairs(pairs(("a", "b")), tokenizer, 10)


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_is_encoded(text):
    encoded, _ = encode_pairs(pairs((text + "\nSummary:\n", "ok"), ("a", text)), TOKENIZER, 64)
    assert learned(encoded[0]) == "ok</s>" and all(len(row["input_ids"]) <= 64 for row in encoded)
    assert learned(encoded[1]) == (text + "</s>" if len(text.encode()) < 60 else text[:63])


def test_the_loss_of_the_whole_batch_does_not_depend_on_its_split():
    logits = torch.randn(4, 9, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.full((4, 9), IGNORED)
    for row, length in enumerate((1, 7, 3, 2)):
        labels[row, 9 - length :] = torch.arange(length)
    for smoothing in (0.0, 0.1):
        loss = token_loss(smoothing)
        whole = loss(CausalLMOutput(logits=logits), labels)
        count = int((labels != IGNORED).sum())
        parts = [loss(CausalLMOutput(logits=logits[part]), labels[part], count) for part in (slice(0, 1), slice(1, 4))]
        torch.testing.assert_close(sum(parts), whole)
        expected = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), label_smoothing=smoothing
        )
        torch.testing.assert_close(whole, expected)
