"""Own data of texts to write: questions and answers, conversations, LLaMA-Factory's descriptions."""

import json
import math
from pathlib import Path

import own_data
import pytest
import torch
from datasets import Dataset
from own_data import error, read, rows
from test_own_runs import lora_drop, read_csv
from torch.nn import functional

from lora_drop.config.schema import DataConfig, TrainConfig
from lora_drop.data.chats import encode_chats, encode_questions
from lora_drop.data.completions import IGNORED, pair_collator
from lora_drop.errors import UserError
from lora_drop.evaluation.perplexity import perplexity
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.task import OwnData
from lora_drop.training.way import find_way

TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


@pytest.fixture(scope="module")
def tokenizer():
    found = load_tokenizer(locate("tiny:llama"), causal=True)
    found.chat_template = TEMPLATE
    return found


def chat_rows(*talks):
    texts = {"messages": [json.dumps(talk) for talk in talks], "asked": [json.dumps(talk[:-1]) for talk in talks]}
    return Dataset.from_dict({"id": [str(number) for number in range(len(talks))], **texts})


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_only_what_the_assistant_says_is_learned(tokenizer):
    encoded, cut = encode_chats(chat_rows(TALK), tokenizer, 200)
    (row,) = encoded.to_list()
    end, begin = tokenizer.eos_token, tokenizer.bos_token
    whole = f"{begin}<user>Hi\n<assistant>Hello{end}\n<user>Bye\n<assistant>See you{end}"
    assert text(tokenizer, row["input_ids"]) == whole
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert text(tokenizer, learned) == f"Hello{end}See you{end}"
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    asked, _ = encode_questions(chat_rows(TALK), tokenizer, 200)
    question = asked["input_ids"][0]
    assert row["input_ids"][: len(question)] == question and text(tokenizer, question).endswith("Bye\n<assistant>")
    assert (cut.prompts, cut.completions) == (0, 0)


def test_a_long_conversation_loses_its_beginning_and_a_long_answer_its_end(tokenizer):
    answer = len("See you") + 1
    encoded, cut = encode_chats(chat_rows(TALK), tokenizer, answer + 5)
    assert text(tokenizer, encoded["input_ids"][0]) == f"tant>See you{tokenizer.eos_token}"
    assert (cut.prompts, cut.completions) == (1, 0)
    encoded, cut = encode_chats(chat_rows(TALK), tokenizer, answer)
    assert text(tokenizer, encoded["input_ids"][0]) == ">See you" and encoded["labels"][0][0] == IGNORED
    assert (cut.prompts, cut.completions) == (0, 1)
    asked, cut = encode_questions(chat_rows(TALK), tokenizer, 5)
    assert text(tokenizer, asked["input_ids"][0]) == "tant>" and cut.prompts == 1


def test_a_template_that_tells_the_date_gives_the_same_tokens_on_any_day(tokenizer, monkeypatch):
    named = "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}Today: {{ date }} "
    inside = "{% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ day() }}\n"
    monkeypatch.setattr(tokenizer, "chat_template", named + inside + TEMPLATE)
    encoded, _ = encode_chats(chat_rows(TALK), tokenizer, 200)
    assert text(tokenizer, encoded["input_ids"][0]).startswith("Today: 26 Jul 2024 2024-07-26\n<s><user>Hi\n")


def test_templates_that_do_not_fit_are_refused(tokenizer):
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content if loop.last else '-' }}{% endfor %}"
    with pytest.raises(UserError, match="writes turn 2 differently"):
        encode_chats(chat_rows(TALK), tokenizer, 200)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="refuses a conversation: System role not supported"):
        encode_chats(chat_rows(TALK), tokenizer, 200)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="this backbone's tokenizer has none"):
        encode_chats(chat_rows(TALK), tokenizer, 200)
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    encoded, _ = encode_chats(chat_rows(TALK), tokenizer, 200)
    assert encoded["labels"][0][-1] == tokenizer.eos_token_id  # else the model would never stop
    tokenizer.chat_template = TEMPLATE


def test_columns_of_questions_and_answers_are_known(tmp_path):
    alpaca = [{"instruction": f"Add {n}", "input": "to 1" if n % 2 else "", "output": f"{n + 1}"} for n in range(10)]
    data = read(own_data.write(tmp_path / "a.json", alpaca))
    found = {row["prompt"]: row["completion"] for row in rows(data)} | {
        row["prompt"]: row["references"][0] for row in rows(data, "validation")
    }
    assert found["Add 1\nto 1\n"] == "2" and found["Add 2\n\n"] == "3" and len(found) == 10
    plain = own_data.write(tmp_path / "p.csv", [{"prompt": f"p{n}:", "completion": f"c;{n}"} for n in range(10)])
    assert {row["prompt"][0] for row in rows(read(plain))} == {"p"} and read(plain).reading.kind == "generation"
    named = own_data.write(tmp_path / "q.csv", [{"q": f"q{n}", "a": f"{n}"} for n in range(10)])
    reading = read(named, text=("q",), label="a", kind="generation").reading
    assert reading.text({"q": "Why?"}) == ("Why?\n",)


def test_conversations_are_read_from_messages_and_from_shared_ones(tmp_path):
    data = read(own_data.write(tmp_path / "c.jsonl", own_data.chats(10)))
    row = rows(data)[0]
    assert [turn["role"] for turn in json.loads(row["asked"])] == ["user", "assistant", "user"]
    assert json.loads(row["messages"])[-1]["content"] == row["references"][0]
    shared = [
        {"conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": "ok"}]} for n in range(10)
    ]
    data = read(own_data.write(tmp_path / "s.parquet", shared))
    assert json.loads(rows(data)[0]["messages"])[1] == {"role": "assistant", "content": "ok"}
    shared[3]["conversations"][1]["from"] = "bot"
    message = error(own_data.write(tmp_path / "s.jsonl", shared))
    assert (
        "s.jsonl, line 4, column 'conversations', turn 2: the role 'bot' must be one of human, gpt, system" in message
    )


def llama_factory(tmp_path, **entries):
    questions = [{"q": f"q{n}", "more": "", "a": f"a{n}", "past": [["x", "y"]], "sys": "Be brief."} for n in range(10)]
    own_data.write(tmp_path / "q.json", questions)
    path = tmp_path / "dataset_info.json"
    columns = {"prompt": "q", "query": "more", "response": "a", "history": "past", "system": "sys"}
    path.write_text(json.dumps({"mine": {"file_name": "q.json", "columns": columns}, **entries}))
    return path


def described(path, name):
    source = Source(None, offline=True)
    return OwnData(DataConfig(dataset_info=str(path), name=name), source).load(source, "train").to_list()


def test_dataset_info_of_llama_factory_is_understood(tmp_path):
    ranked = {"file_name": "q.json", "ranking": True}
    path = llama_factory(tmp_path, ranked=ranked, remote={"ms_hub_url": "x/y"}, plain={"file_name": "plain.json"})
    own_data.write(tmp_path / "plain.json", [{"instruction": f"i{n}", "output": "o"} for n in range(10)])
    turns = json.loads(described(path, "mine")[0]["messages"])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[0]["content"] == "Be brief." and turns[-1]["content"][0] == "a"
    assert [turn["role"] for turn in json.loads(described(path, "plain")[0]["messages"])] == ["user", "assistant"]
    for name, says in (
        ("mein", "Did you mean 'mine'"),
        ("ranked", "preference training"),
        ("remote", "no other source"),
    ):
        with pytest.raises(UserError, match=says):
            described(path, name)


def test_every_part_of_a_conversation_is_read(tmp_path):
    rows = [{"instruction": "", "input": f"Translate {n}.", "output": "o"} for n in range(10)]
    own_data.write(tmp_path / "only_input.json", rows)
    rows[3]["output"] = "half \ud83d"
    own_data.write(tmp_path / "half.json", rows)
    path = llama_factory(tmp_path, only={"file_name": "only_input.json"}, half={"file_name": "half.json"})
    first = json.loads(described(path, "only")[0]["asked"])
    assert first[0]["content"].startswith("Translate")
    with pytest.raises(UserError, match=r"half\.json, line .*, column 'output': half a character"):
        described(path, "half")


def test_turns_in_prompt_and_completion_are_a_conversation(tmp_path):
    asked, said = {"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": "Yes."}
    own_data.write(tmp_path / "pc.jsonl", [{"prompt": [asked], "completion": [said]}] * 9)
    data = own_data.read(tmp_path / "pc.jsonl")
    assert json.loads(own_data.rows(data)[0]["messages"]) == [asked, said]
    assert json.loads(own_data.rows(data)[0]["asked"]) == [asked]


def test_a_conversation_begins_with_something_to_answer(tmp_path):
    turns = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "Yes?"}]}] * 9
    own_data.write(tmp_path / "chat.jsonl", rows)
    with pytest.raises(UserError, match=r"chat\.jsonl, line 1: the first turn is the assistant's"):
        own_data.read(tmp_path / "chat.jsonl")


def test_perplexity_is_that_of_all_answers(tokenizer):
    backbone = locate("tiny:llama")
    model = load_model(backbone, TASKS.get("toy-nlg"), 0, tokenizer)
    encoded, _ = encode_chats(chat_rows(TALK, TALK[:2]), tokenizer, 200)
    total, count = 0.0, 0
    for row in encoded.to_list():
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        total += float(functional.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED))
        count += int((targets != IGNORED).sum())
    for size in (1, 2):
        assert perplexity(model, encoded, tokenizer, size) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_perplexity_is_measured_in_the_way_given_without_dropout_and_of_a_diverged_model_not_at_all(tokenizer):
    model = load_model(locate("tiny:llama"), TASKS.get("toy-nlg"), 0, tokenizer)
    encoded, _ = encode_chats(chat_rows(TALK, TALK[:2]), tokenizer, 200)
    plain = perplexity(model, encoded, tokenizer, 2)
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.9))
    assert perplexity(model.train(), encoded, tokenizer, 2) == plain and model.training
    half = TrainConfig(precision="bf16", packing="never")
    way = find_way(model, None, pair_collator(tokenizer), half, learns=False)
    with torch.autocast("cpu", torch.bfloat16):
        expected = perplexity(model, encoded, tokenizer, 2)
    assert perplexity(model, encoded, tokenizer, 2, way) == pytest.approx(expected, rel=1e-4) != plain
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(1e6)
    assert perplexity(model, encoded, tokenizer, 2) == math.exp(700)  # and no overflow
    with torch.no_grad():
        head[7, 0] = torch.nan
    with pytest.raises(UserError, match="predicts NaN: its training diverged"):
        perplexity(model, encoded, tokenizer, 2)


@pytest.mark.slow
def test_a_run_on_conversations_and_what_it_writes(tmp_path, monkeypatch, tokenizer, capsys):
    monkeypatch.chdir(tmp_path)
    backbone = locate("tiny:llama")
    load_model(backbone, TASKS.get("toy-nlg"), 0, tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    own_data.write(tmp_path / "c.jsonl", own_data.chats(40))
    common = ["-b", "./model", "-q", "-o", "train.epochs=1", "-o", "warmup.epochs=1", "-o", "train.max_length=200"]
    common += ["-o", "generation.max_new_tokens=8"]
    assert lora_drop("run", "--data", "c.jsonl", "-q", "-b", "tiny:bert") == 2
    assert "These data have texts to generate, but tiny:bert is an encoder" in " ".join(capsys.readouterr().err.split())
    given = ["--data", "c.jsonl", "--metric", "perplexity"]
    assert lora_drop("run", *given, *common) == 2
    assert "train.select_epoch=last" in capsys.readouterr().err
    assert lora_drop("run", *given, *common, "-o", "train.select_epoch=last") == 0
    metrics = json.loads(Path("runs/c/metrics.json").read_text())["metrics"]
    assert list(metrics) == ["perplexity"] and 1 < metrics["perplexity"] < 1000
    assert (
        lora_drop("run", "-d", "both", "--data", "c.jsonl", "--metric", "rougeL", "--metric", "perplexity", *common)
        == 0
    )
    assert list(json.loads(Path("both/metrics.json").read_text())["metrics"]) == ["rouge_l", "perplexity"]
    assert lora_drop("predict", "both", "--data", "c.jsonl", "--to", "out.jsonl", "-q") == 0
    assert len([json.loads(line)["prediction"] for line in Path("out.jsonl").read_text().splitlines()]) == 40
    assert lora_drop("predict", "both", "--data", "c.jsonl", "--to", "out.csv", "-q") == 0
    blank = [*own_data.chats(3), {"messages": []}, *own_data.chats(2)]
    own_data.write(tmp_path / "blank.jsonl", blank)
    assert lora_drop("predict", "both", "--data", "blank.jsonl", "--to", "blank-out.jsonl", "-q") == 0
    assert len(Path("blank-out.jsonl").read_text().splitlines()) == len(blank)
    talks = [row["messages"] for row in own_data.chats(40)]
    assert [json.loads(row["messages"]) for row in read_csv(Path("out.csv"))] == talks
    capsys.readouterr()
    Path("dataset_info.json").write_text(json.dumps({"t": {"file_name": "c.jsonl", "formatting": "sharegpt"}}))
    assert lora_drop("tasks", "--dataset-info", "dataset_info.json", "--name", "t") == 2  # the turns' usual column
    assert "no column 'conversations'" in " ".join(capsys.readouterr().err.split())
    assert lora_drop("tasks", "--inspect", "c.jsonl", "-b", "./model", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kind"] == "generation" and found["text"] == ["messages"] and found["lengths"]["unit"] == "tokens"
