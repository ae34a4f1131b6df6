"""Tokenised rows are made once: what decides them decides the entry, and a cache that fails is no failure of the run."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lora_drop.config.schema import Config, TrainConfig
from lora_drop.data.token_cache import cache_folder, entry_key
from lora_drop.evaluation.kinds import get_kind
from lora_drop.models.backbones import load_tokenizer, locate
from lora_drop.progress import Reporter
from lora_drop.registry import TASKS
from lora_drop.runs.rows import Data
from lora_drop.tasks.base import Source

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
    """The folder of the entries of an empty cache."""
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def data(config=CUT):
    """The rows of a configuration, as a process of its own would have them, and what is said of them."""
    heard = Heard()
    return Data(config, TASKS.get(config.task), Source(None, True), locate(config.backbone), heard), heard


def forbid_tokenising(rows):
    def refuse(*given):
        raise AssertionError("tokenised again")

    rows.kind = replace(rows.kind, encode_training=refuse, encode_evaluation=refuse)


def entries(folder):
    """The files of the cache by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("config", [CUT, WRITTEN], ids=["classifier", "generator"])
def test_rows_and_notices_are_the_same_the_second_time(config, folder, monkeypatch):
    made, told = data(config)
    rows = made.train.encoded, made.eval.encoded
    kept_files = entries(folder)
    assert told.notices and len(kept_files) == 4
    with monkeypatch.context() as without_a_home:
        without_a_home.setattr("lora_drop.runs.rows.cache_folder", lambda: None)
        plain, _ = data(config)
        in_memory = plain.train.encoded, plain.eval.encoded
    kept, told_again = data(config)
    forbid_tokenising(kept)
    for uncached, first, second in zip(in_memory, rows, (kept.train.encoded, kept.eval.encoded), strict=True):
        assert uncached.features == first.features == second.features
        assert uncached[:] == first[:] == second[:] and second[3] == first[3]
        assert second.select([5, 2])[:] == first.select([5, 2])[:]
        assert type(second[0]["input_ids"]) is list and type(second[0]["input_ids"][0]) is int
        assert second.cache_files and not uncached.cache_files  # mapped, not in memory
    assert told_again.notices == told.notices
    assert entries(folder) == kept_files


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
    kind, tokenizer = get_kind(TASKS.get(task)), load_tokenizer(locate("tiny:llama"))
    load = TASKS.get(task).load
    kind.encode_training(load(Source(None), "train").select([0]), tokenizer, config, "training")
    kind.encode_evaluation(load(Source(None), TASKS.get(task).splits[0]).select([0]), tokenizer, config, "evaluation")
    assert read <= {"max_length", "max_new_tokens"}


def test_changed_rows_are_tokenised(folder):
    first, _ = data()
    rows = first.train.encoded
    changed, _ = data()
    texts = list(first.train.rows["text"])
    changed.train.rows = first.train.rows.remove_columns("text").add_column("text", ["Dogs bark.", *texts[1:]])
    assert changed.train.encoded[0] != rows[0] and changed.train.encoded[1] == rows[1]
    assert len(entries(folder)) == 4


def test_what_a_killed_process_left_is_removed_after_a_day_and_not_while_it_may_be_written(folder):
    folder.mkdir(parents=True)
    old, new = folder / ".abc.arrow.12.tmp", folder / ".abc.arrow.13.tmp"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (new.stat().st_mtime - 90_000,) * 2)
    data()[0].train.encoded  # noqa: B018 - it is the making of them
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("harm", ["cut", "altered", "emptied", "removed"])
def test_a_damaged_entry_is_made_anew(harm, suffix, folder):
    whole = data()[0].train.encoded[:]
    files = entries(folder)
    (path,) = folder.glob(f"*{suffix}")
    content = path.read_bytes()
    middle = len(content) // 2
    harmed = {"cut": content[:middle], "altered": content[:middle] + b"\xff" + content[middle + 1 :], "emptied": b""}
    path.write_bytes(harmed.get(harm, b""))
    if harm == "removed":
        path.unlink()
    assert data()[0].train.encoded[:] == whole
    assert entries(folder) == files


def test_a_folder_that_cannot_be_written_is_said_and_the_rows_are_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "file" / "cache"))  # root may write anywhere but into a file
    rows, heard = data(replace(CUT, train=TrainConfig(max_length=256)))
    assert len(rows.train.encoded) == 1600 and len(rows.eval.encoded) == 400
    assert len(set(heard.notices)) == 1 and "Name another folder with LORA_DROP_CACHE" in heard.notices[0]


def test_files_of_others_are_never_touched(tmp_path, monkeypatch):
    """The folder may be anybody's, and full: its own entries of an odd path are found again all the same."""
    home = tmp_path / "c++ (my [data]"
    names = ["thesis.arrow", "0123456789abcdef.arrow", "tokens/notes.txt", "tokens/tmpabcdefgh", "tokens/x.arrow"]
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"mine")
        os.utime(home / name, (0, 0))
    monkeypatch.setenv("LORA_DROP_CACHE", str(home))
    rows = data()[0].train.encoded
    kept, _ = data()
    forbid_tokenising(kept)
    assert kept.train.encoded[:] == rows[:] and len(list((home / "tokens").iterdir())) == 5
    assert all((home / name).read_bytes() == b"mine" for name in names)


@pytest.mark.slow
def test_several_processes_may_write_the_same_entry(folder):
    code = """
from lora_drop.data import token_cache
from lora_drop.models.backbones import locate
from lora_drop.config.schema import Config
from lora_drop.runs.rows import Data
from lora_drop.progress import Reporter
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source
import sys

class Heard(Reporter):
    def notice(self, text):
        print(text)

rows = Data(Config(backbone="tiny:bert"), TASKS.get("toy-nli"), Source(None, True), locate("tiny:bert"), Heard())
read, waits = token_cache._read, []
token_cache._read = lambda *given: read(*given) if waits.pop() else None  # first as if the other had not finished
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    waits[:] = [True, False]
    vars(rows.train).pop("encoded", None)
    print(len(rows.train.encoded))
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    surroundings = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    processes = [subprocess.Popen(command, env=surroundings, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[0] for process in processes] == ["1600\n" * 8] * 2
    assert len(entries(folder)) == 2
    kept, _ = data(replace(CUT, train=Config().train))
    forbid_tokenising(kept)
    assert len(kept.train.encoded) == 1600


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("LORA_DROP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lora-drop" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lora-drop" / "tokens"
    monkeypatch.setenv("LORA_DROP_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine" / "tokens"
