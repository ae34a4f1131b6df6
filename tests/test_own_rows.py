"""Own data: the rows of a table, as they are kept and tokenised."""

import own_data
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from own_data import csv_file, read, rows

from lora_drop.config.loading import load_config
from lora_drop.data.content import content_digest
from lora_drop.evaluation import kinds
from lora_drop.files import digest
from lora_drop.models.backbones import load_tokenizer, locate
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.rows import strata, strata_of_rows
from lora_drop.tasks.own.splits import table_of
from lora_drop.tasks.own.values import as_label


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    reviews = own_data.reviews(50)
    data = read(own_data.write(tmp_path / name, reviews), text=("review",), label="stars", validation=0.2)
    assert data.reading.kind == "classification" and data.reading.labels == ("1", "2", "3", "4", "5")
    texts = {row["text"]: row["label"] for split in ("train", "validation") for row in rows(data, split)}
    assert texts == {row["review"]: row["stars"] - 1 for row in reviews}
    assert len(rows(data)) == 40 and len(rows(data, "validation")) == 10


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_cells_of_a_csv_may_be_parted_by_other_signs(sign, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(
        "\n".join(sign.join(cells) for cells in [("text", "label"), *((f"t, {n}", "ab"[n % 2]) for n in range(20))])
    )
    assert len(rows(read(path))) == 16 and read(path).reading.labels == ("a", "b")


@pytest.mark.parametrize("odd", [['"Not closed'], ['"Said" is not all'], ['"Opened', "within", 'closed"', "fine"]])
def test_quotes_in_a_file_of_tabs_that_quotes_no_cell_are_text(odd, tmp_path):
    texts = [*(f"t{n}" for n in range(20)), *odd]
    lines = "".join(f"{text}\t{'ab'[n % 2]}\n" for n, text in enumerate(texts))
    data = read(csv_file(tmp_path, f"text\tlabel\n{lines}", "r.tsv"))
    assert sorted(row["text"] for split in ("train", "validation") for row in rows(data, split)) == sorted(texts)


def test_cells_of_a_file_of_tabs_may_be_quoted(tmp_path):
    texts = [f"t{n}" for n in range(20)] + ["two\nlines", "a\ttab", 'a "word"', '"begins']
    path = own_data.write(tmp_path / "r.tsv", [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts)])
    data = read(path)
    assert sorted(row["text"] for split in ("train", "validation") for row in rows(data, split)) == sorted(texts)


def test_a_kept_copy_that_is_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    path = own_data.write(tmp_path / "r.csv", own_data.reviews(20))
    before = rows(read(path, label="stars"))
    (copy,) = (tmp_path / "cache" / "rows").glob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:100])
    assert rows(read(path, label="stars")) == before and copy.stat().st_size > 100
    monkeypatch.setenv("LORA_DROP_CACHE", str(path))  # a file, in which no folder can be made
    assert rows(read(path, label="stars")) == before


@pytest.mark.parametrize(("label", "kind"), [("stars", "auto"), ("delight", "auto"), ("aspects", "multilabel")])
def test_rows_of_the_task_have_the_strata_of_their_labels_in_the_table(label, kind, tmp_path):
    path = own_data.write(tmp_path / "r.jsonl", own_data.reviews(50))
    data = read(path, text=("review",), label=label, kind=kind)
    labels = [as_label(row[label]) for _, row in data.table("train").rows()]
    found = strata(data.reading, labels)
    assert len(set(found)) > 2
    assert (
        strata_of_rows(
            data.reading, Dataset.from_dict({"label": [data.reading.target({label: each}) for each in labels]})
        )
        == found
    )


def test_classes_of_the_hub_have_their_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    table = table_of("org/name", Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features), "")
    assert list(table.rows()) == [
        ("org/name, row 1", {"text": "a", "label": "good"}),
        ("org/name, row 2", {"text": "b", "label": None}),
    ]


def test_the_hash_of_rows_is_that_of_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_drop.data.content.AT_A_TIME", 7)
    for label in ("stars", "delight", "aspects"):
        data = read(own_data.write(tmp_path / "r.jsonl", own_data.reviews(40)), label=label)
        loaded = data.load(data.source, "train")
        assert content_digest(loaded) == digest([loaded[:]])
    assert content_digest(Dataset.from_dict({})) == digest([{}])


@pytest.mark.parametrize("name", ["p.csv", "q.csv"])
def test_rows_tokenised_in_parts_are_those_tokenised_at_once(name, tmp_path, monkeypatch):
    questions = [{"prompt": f"{'long ' * n}:", "completion": f"answer {n}"} for n in range(30)]
    data = read(own_data.write(tmp_path / name, own_data.pairs(30) if name == "p.csv" else questions))
    kind, loaded = kinds.get_kind(data.task()), data.load(data.source, "train")
    config = load_config(overrides=["train.max_length=40", "generation.max_new_tokens=8"])
    tokenizer = load_tokenizer(locate("tiny:llama" if kind.causal else "tiny:bert"), kind.causal)
    for encode in (kind.encode_training, kind.encode_evaluation):
        whole, told = encode(loaded, tokenizer, config, "some")
        monkeypatch.setattr(kinds, "PART", 7)
        parts, told_of_parts = encode(loaded, tokenizer, config, "some")
        monkeypatch.undo()
        assert parts.to_list() == whole.to_list() and told == told_of_parts != []


def test_kept_rows_that_were_damaged_are_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    path = csv_file(tmp_path, "text,label\n" + "a good dog,x\na bad dog,y\n" * 10)

    def texts() -> list[str]:
        data = read(path)
        return sorted(data.load(Source(None), "train")["text"])

    before = texts()
    (kept,) = [each for each in (tmp_path / "cache" / "rows").glob("*.arrow") if b"good" in each.read_bytes()][:1]
    kept.write_bytes(kept.read_bytes().replace(b"good", b"evil"))
    assert texts() == before and b"evil" not in kept.read_bytes()
