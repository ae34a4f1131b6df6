"""Decoding: a text depends on its prompt alone, and a killed evaluation continues."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from models import randomise_b

from lora_drop.config.schema import GenerationConfig, MethodConfig
from lora_drop.data.completions import encode_prompts
from lora_drop.errors import UserError
from lora_drop.evaluation import generator
from lora_drop.evaluation.generator import NoRepeatedText, decoding_config, evaluate_generator, generate, read_journal
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.registry import METHODS, TASKS

PROMPTS = [
    "animal[dog]\n\nIn words:\n",
    "",
    "a " * 60 + "\n\nIn words:\n",
    "#Person1#: 😀 naïve\r\n#Person2#: שלום\r\n\nIn words:\n",
    "mr",
    "word " * 5000 + "\n\nIn words:\n",
]
GREEDY = GenerationConfig(max_new_tokens=24)
BEAMS = GenerationConfig(num_beams=3, max_new_tokens=24, length_penalty=0.8, no_repeat_ngram_size=3)


@pytest.fixture(scope="module")
def writer():
    """A tiny causal model under a LoRA, its tokenizer, and prompts of very different lengths."""
    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located, causal=True)
    model = METHODS.get("lora").build(
        load_model(located, TASKS.get("toy-nlg"), 0, tokenizer), MethodConfig(rank=4), 0, None
    )
    with torch.no_grad():  # untrained weights are so small that every token is about as likely
        for parameter in model.parameters():
            parameter.mul_(4)
    randomise_b(model, 0)
    encoded, _ = encode_prompts(Dataset.from_dict({"prompt": PROMPTS}), tokenizer, 200)
    return model, tokenizer, encoded


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_batch_gives_what_its_prompts_give_one_by_one(writer, settings):
    model, tokenizer, encoded = writer
    batched = generate(model, encoded, tokenizer, settings, 6)
    assert (
        batched == generate(model, encoded, tokenizer, settings, 1) == generate(model, encoded, tokenizer, settings, 4)
    )
    assert len(set(batched)) > 3 and all(batched)


def test_the_first_end_of_text_ends_it(writer):
    _, tokenizer, _ = writer
    end = tokenizer.eos_token_id
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert generator._decode(tokenizer, [*ids, end, *ids, end], end) == "abc"
    assert generator._decode(tokenizer, ids, end) == "abc"


def test_the_mode_of_the_model_is_as_before(writer):
    model, tokenizer, encoded = writer
    model.train()
    generate(model, encoded.select([4]), tokenizer, GREEDY, 1)
    assert model.training
    model.eval()


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_model_that_puts_out_nan_writes_nothing(writer, settings):
    model, tokenizer, encoded = writer
    diverged = copy.deepcopy(model)
    with torch.no_grad():
        diverged.get_output_embeddings().weight[7, 0] = torch.nan
    with pytest.raises(UserError, match="predicts NaN: its training diverged"):
        generate(diverged, encoded, tokenizer, settings, 6)


def test_n_grams_of_the_prompt_may_be_copied_those_of_the_text_not():
    rule = NoRepeatedText(2, start=3)
    scores = torch.zeros(1, 9)
    assert torch.equal(rule(torch.tensor([[5, 6, 7, 5]]), scores), scores)  # 5 6 stands in the prompt alone
    banned = rule(torch.tensor([[5, 6, 7, 5, 6, 5]]), scores)
    assert banned[0].isinf().nonzero().flatten().tolist() == [6]


def test_no_n_gram_occurs_twice(writer, monkeypatch):
    model, tokenizer, encoded = writer
    monkeypatch.setattr(generator, "_decode", lambda tokenizer, ids, end: ids[: ids.index(end)] if end in ids else ids)
    (ids,) = generate(model, encoded.select([0]), tokenizer, BEAMS, 1)
    grams = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(grams) > 10 and len(grams) == len(set(grams))


def test_settings_of_a_checkpoint_do_not_leak(writer):
    model, tokenizer, _ = writer
    kept = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    assert model.generation_config.to_diff_dict().keys() <= kept
    assert not decoding_config(GREEDY, tokenizer).do_sample


@pytest.mark.parametrize("beams", [2, 5])
def test_settings_of_beams_are_those_asked_for_and_greedy_decoding_has_none(writer, beams):
    _, tokenizer, _ = writer
    found = decoding_config(GenerationConfig(num_beams=beams, max_new_tokens=7, length_penalty=0.3), tokenizer)
    assert (found.num_beams, found.length_penalty, found.early_stopping) == (beams, 0.3, False)
    greedy = decoding_config(GenerationConfig(num_beams=1, max_new_tokens=7, length_penalty=0.3), tokenizer)
    assert greedy.num_beams == 1 and greedy.to_diff_dict().keys().isdisjoint({"length_penalty", "early_stopping"})
    for settings in (found, greedy):
        assert settings.max_new_tokens == 7
        assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_texts_are_written_without_dropout_also_by_a_model_in_training(writer):
    model, tokenizer, encoded = writer
    prompts, dropping = encoded.select([0, 3, 4]), copy.deepcopy(model)
    for module in dropping.modules():
        for dropout in getattr(module, "lora_dropout", {}):
            module.lora_dropout[dropout] = torch.nn.Dropout(0.9)
    expected = generate(model, prompts, tokenizer, GREEDY, 3)
    assert generate(dropping.train(), prompts, tokenizer, GREEDY, 3) == expected and dropping.training


class Killed(Exception):
    pass


def test_a_killed_evaluation_continues_after_the_last_whole_batch(writer, tmp_path, monkeypatch):
    model, tokenizer, encoded = writer
    undisturbed = generate(model, encoded, tokenizer, GREEDY, 2)
    journal = tmp_path / "checkpoints" / "texts.jsonl"

    def kill(done, total):
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        generate(model, encoded, tokenizer, GREEDY, 2, progress=kill, journal=journal)
    assert read_journal(journal)[1] == 2
    with journal.open("a") as file:
        file.write('["cut o')
    shown, generated, write = [], [], generator._continue
    monkeypatch.setattr(generator, "_continue", lambda *given: generated.append(1) or write(*given))
    continued = generate(
        model, encoded, tokenizer, GREEDY, 2, progress=lambda done, total: shown.append(done), journal=journal
    )
    assert continued == undisturbed and shown == [2, 4, 6] and len(generated) == 1
    texts, lines = read_journal(journal)
    assert lines == 3 and [texts[row] for row in range(6)] == undisturbed


@pytest.mark.parametrize(("size", "again"), [(1, 2), (2, 1), (3, 1), (6, 1)])
def test_it_continues_in_batches_of_another_size(size, again, writer, tmp_path, monkeypatch):
    """As after running out of memory: what is written of whole batches is not written again."""
    model, tokenizer, encoded = writer
    journal, generated, write = tmp_path / "texts.jsonl", [], generator._continue
    undisturbed = generate(model, encoded, tokenizer, GREEDY, 2, journal=journal)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    monkeypatch.setattr(generator, "_continue", lambda *given: generated.append(1) or write(*given))
    for _ in range(2):
        assert generate(model, encoded, tokenizer, GREEDY, size, journal=journal) == undisturbed
    assert len(generated) == again


def test_a_line_of_a_journal_that_was_altered_ends_it(writer, tmp_path):
    model, tokenizer, encoded = writer
    journal = tmp_path / "texts.jsonl"
    undisturbed = generate(model, encoded, tokenizer, GREEDY, 2, journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    other = json.dumps(["wrong", "text"]).encode() + b"\n"
    for content in (
        b"".join([lines[1], *lines[1:]]),
        b"".join([lines[0], lines[1][:65] + other, lines[2]]),
        b"".join([lines[0], other]),
        b"\xff\n" + b"".join(lines),
        b"\n" + b"".join(lines),
        bytes(100),
    ):
        journal.write_bytes(content)
        assert generate(model, encoded, tokenizer, GREEDY, 2, journal=journal) == undisturbed
        assert journal.read_bytes() == b"".join(lines)


def test_texts_are_compared_with_all_references(writer):
    model, tokenizer, encoded = writer
    texts = [text.strip() for text in generate(model, encoded, tokenizer, GREEDY, 6)]
    rows = Dataset.from_dict({"id": [str(n) for n in range(6)], "references": [["other", text] for text in texts]})
    result = evaluate_generator(model, TASKS.get("toy-nlg"), rows, encoded, tokenizer, GREEDY, 6)
    assert result.metrics["sacrebleu"] == pytest.approx(100)
    assert result.predictions[0] == {"id": "0", "prediction": texts[0], "references": ["other", texts[0]]}
    assert result.details["signatures"].keys() == result.metrics.keys()
