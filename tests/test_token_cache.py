"""Tokenised rows are made once: what decides them decides the entry, and a cache that fails is no failure of the run."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from datasets import Dataset

from lora_drop import token_cache
from lora_drop.backbones import load_tokenizer, locate
from lora_drop.config import Config, TrainConfig
from lora_drop.data import Data
from lora_drop.kinds import get_kind
from lora_drop.progress import Reporter
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source
from lora_drop.token_cache import TokenCache, cache_folder, entry_key

CUT = Config(backbone="tiny:bert", train=TrainConfig(max_length=32))
WRITTEN = Config(task="toy-nlg", backbone="tiny:llama", train=TrainConfig(max_length=80))


class Heard(Reporter):
    """Keeps the notices."""

    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def data(config=CUT):
    """The rows of a configuration, as a process of its own would have them, and what is said of them."""
    heard = Heard()
    return Data(config, get_task(config.task), Source(None, True), locate(config.backbone), heard), heard


def forbid_tokenising(rows):
    def refuse(*given):
        raise AssertionError("tokenised again")

    rows.kind = replace(rows.kind, encode_training=refuse, encode_evaluation=refuse)


@pytest.mark.parametrize("config", [CUT, WRITTEN], ids=["classifier", "generator"])
def test_rows_and_notices_are_the_same_the_second_time(config, folder):
    made, told = data(config)
    rows = made.train_encoded, made.eval_encoded
    assert told.notices and len(list(folder.iterdir())) == 2
    kept, told_again = data(config)
    forbid_tokenising(kept)
    for first, second in zip(rows, (kept.train_encoded, kept.eval_encoded), strict=True):
        assert second.features == first.features and second[:] == first[:] and second[3] == first[3]
        assert second.select([5, 2])[:] == first.select([5, 2])[:]
        assert type(second[0]["input_ids"]) is list and type(second[0]["input_ids"][0]) is int
    assert told_again.notices == told.notices
    assert len(list(folder.iterdir())) == 2


def test_whatever_decides_the_tokens_decides_the_key():
    located = locate("tiny:bert")
    tokenizer = load_tokenizer(located)
    given = {
        "rows": "r",
        "what": "training",
        "causal": False,
        "tokenizer": tokenizer,
        "backbone": located.identity,
        "config": CUT,
    }
    key = entry_key(**given)
    tokenizer(["a", "b c"], truncation=True, max_length=2, padding=True)
    assert entry_key(**given) == key  # a tokenizer keeps the settings of its last call
    larger = load_tokenizer(located)
    larger.add_tokens(["poodle"])
    others = {
        "rows": "s",
        "what": "evaluation",
        "causal": True,
        "tokenizer": larger,
        "backbone": "other",
        "config": replace(CUT, train=TrainConfig(max_length=33)),
    }
    keys = {entry_key(**{**given, name: value}) for name, value in others.items()}
    keys.add(entry_key(**{**given, "tokenizer": load_tokenizer(located, causal=True)}))
    assert len(keys - {key}) == 7


@pytest.mark.parametrize("task", ["toy-nli", "toy-nlg"])
def test_the_key_covers_all_that_the_encoders_read_of_a_configuration(task):
    read = set()

    class Recorded(SimpleNamespace):
        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if not isinstance(value, Recorded):
                read.add(name)
            return value

    config = Recorded(train=Recorded(**vars(CUT.train)), generation=Recorded(**vars(CUT.generation)))
    kind, tokenizer = get_kind(get_task(task)), load_tokenizer(locate("tiny:llama"))
    load = get_task(task).load
    kind.encode_training(load(Source(None), "train").select([0]), tokenizer, config, "training")
    kind.encode_evaluation(load(Source(None), get_task(task).splits[0]).select([0]), tokenizer, config, "evaluation")
    assert read <= {"max_length", "max_new_tokens"}


def test_changed_rows_are_tokenised(folder):
    first, _ = data()
    rows = first.train_encoded
    changed, _ = data()
    texts = list(first.train_rows["text"])
    changed.train_rows = first.train_rows.remove_columns("text").add_column("text", ["Dogs bark.", *texts[1:]])
    assert changed.train_encoded[0] != rows[0] and changed.train_encoded[1] == rows[1]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("harm", ["cut", "altered", "emptied"])
def test_a_damaged_entry_is_made_anew(harm, folder):
    whole = data()[0].train_encoded[:]
    (entry,) = folder.iterdir()
    content = entry.read_bytes()
    middle = len(content) // 2
    harmed = {"cut": content[:middle], "altered": content[:middle] + b"\xff" + content[middle + 1 :], "emptied": b""}
    entry.write_bytes(harmed[harm])
    assert data()[0].train_encoded[:] == whole
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(entry.name, content)]


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "file" / "cache"))  # root may write anywhere but into a file
    rows, heard = data(replace(CUT, train=TrainConfig(max_length=256)))
    assert len(rows.train_encoded) == 1600 and len(rows.eval_encoded) == 400
    assert len(heard.notices) == 1 and "LORA_DROP_CACHE names another folder" in heard.notices[0]


def test_several_processes_may_write_the_same_entry(folder):
    code = """
from lora_drop.backbones import locate
from lora_drop.config import Config
from lora_drop.data import Data
from lora_drop.progress import Reporter
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source
from lora_drop.token_cache import TokenCache
import sys
rows = Data(Config(backbone="tiny:bert"), get_task("toy-nli"), Source(None, True), locate("tiny:bert"), Reporter())
TokenCache._read = lambda cache, key: None  # as if the other had not finished
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    vars(rows).pop("train_encoded", None)
    print(len(rows.train_encoded), rows._cache.folder is None)
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[0] for process in processes] == ["1600 False\n" * 20] * 2
    assert len(list(folder.iterdir())) == 1
    kept, _ = data(replace(CUT, train=Config().train))
    forbid_tokenising(kept)
    assert len(kept.train_encoded) == 1600


def test_what_was_not_used_for_longest_is_removed(folder, monkeypatch):
    cache = TokenCache(folder, Heard())
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 100})
    for name in ("a", "b", "c"):
        cache.encoded(name, lambda: (rows, []))
    (size,) = {path.stat().st_size for path in folder.iterdir()}
    for age, path in enumerate(sorted(folder.iterdir(), reverse=True), 1):
        os.utime(path, (time.time() - 60 * age,) * 2)
    cache.encoded("a", lambda: pytest.fail("made again"))  # the oldest is used, and so b is
    monkeypatch.setattr(token_cache, "LIMIT", 3 * size)
    cache.encoded("d", lambda: (rows, []))
    assert sorted(path.name[0] for path in folder.iterdir()) == ["a", "c", "d"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("LORA_DROP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lora-drop"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lora-drop"
    monkeypatch.setenv("LORA_DROP_CACHE", "~/tokens")
    assert cache_folder() == tmp_path / "tokens"
