import json
from collections import Counter

import pytest

from lora_drop.errors import UserError
from lora_drop.pruning.sampling import stratified_sample
from lora_drop.tasks import dart, dialogsum, e2e, toy_nlg
from lora_drop.tasks.base import Source

HARD = 'naïve "quote", 😀 مرحبا'
"""Quotes, a comma, an accent, an emoji, text from right to left."""


def load(tmp_path, module, split, content):
    path = tmp_path / module.FILES[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return module.TASK.load(Source(tmp_path, offline=True), split)


def prompts(module, *texts):
    (slot,) = {"mr", "triples", "dialogue"} & {module.PROMPT.split("{")[1].split("}")[0]}
    return [module.PROMPT.format(**{slot: text}) for text in texts]


# --- E2E --------------------------------------------------------------------------------------------------------------


def test_e2e_training_rows_are_pairs(tmp_path):
    content = '\ufeffmr,ref\r\n"name[A], customer rating[low]","x ""y"", z"\r\n,An empty MR.\r\n\r\n"name[A]","two\nlines"\r\n'
    rows = load(tmp_path, e2e, "train", content)
    assert rows.column_names == ["id", "prompt", "completion", "stratum"]
    assert list(rows["prompt"]) == prompts(e2e, "name[A], customer rating[low]", "", "name[A]")
    assert list(rows["completion"]) == ['x "y", z', "An empty MR.", "two\nlines"]
    assert e2e.TASK.strata(rows) == ["slots: 2", "slots: 0", "slots: 1"]


def test_e2e_references_are_grouped_by_first_appearance(tmp_path):
    rows = load(
        tmp_path, e2e, "test", f"mr,ref\nname[B],b1\nname[A],a1\nname[B],b2\n{{odd}},{HARD.replace(',', '')[0:5]}\n"
    )
    assert rows.column_names == ["id", "prompt", "references"]
    assert list(rows["references"]) == [["b1", "b2"], ["a1"], ["naïve"]]
    assert list(rows["prompt"]) == prompts(e2e, "name[B]", "name[A]", "{odd}")
    assert e2e.meaning_representations(list(rows["prompt"])) == ["name[B]", "name[A]", "{odd}"]


def test_e2e_strata_do_not_depend_on_order_or_values():
    assert e2e.stratum("name[A], eatType[pub]") == e2e.stratum("eatType[a, b], name[B, c]") == "slots: 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mr,ref\na,b\na,b,c\n", r"trainset\.csv, line 3: 3 cells where 2 are expected \(mr, ref\)"),
        ("mr,text\na,b\n", r"trainset\.csv, line 1: there is no column 'ref', only mr, text"),
        ('mr,ref\na,b\n"a,b\n', r"trainset\.csv, line 3: not readable as CSV"),
        (b"mr,ref\na,b\n\xff,b\n", r"trainset\.csv, line 3: not UTF-8"),
        ("mr,ref\na, \n", r"trainset\.csv, line 2: the reference is empty"),
        ('mr,ref\nIt is near.,"name[A], near[B]"\n', r"line 2: the reference has slots, and the MR 'It is near.' none"),
        ("mr,ref\n", r"trainset\.csv has no rows"),
        ("", r"trainset\.csv has no rows"),
    ],
)
def test_e2e_broken_rows_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, e2e, "train", content)


# --- DART -------------------------------------------------------------------------------------------------------------

ITEMS = [
    {
        "tripleset": [["A", "IS IN", HARD], ["[TABLECONTEXT]", "[TITLE]", "T"]],
        "subtree_was_extended": True,
        "annotations": [{"source": "e2e", "text": HARD}, {"source": "webnlg", "text": ""}],
    },
    {"tripleset": [], "annotations": [{"source": "e2e", "text": "Nothing."}]},
]


def dart_json(items, line_end="\n"):
    return json.dumps(items, indent=1, ensure_ascii=False).replace("\n", line_end)


def test_every_dart_annotation_is_a_training_row(tmp_path):
    rows = load(tmp_path, dart, "train", "\ufeff" + dart_json(ITEMS, "\r\n"))
    first = f"A : IS IN : {HARD} | [TABLECONTEXT] : [TITLE] : T"
    assert list(rows["prompt"]) == prompts(dart, first, first, "")
    assert list(rows["completion"]) == [HARD, "", "Nothing."]
    assert dart.TASK.strata(rows) == ["e2e", "webnlg", "e2e"]
    assert len(set(rows["id"])) == 3


def test_dart_evaluation_rows_are_items_with_all_references(tmp_path):
    rows = load(tmp_path, dart, "validation", dart_json(ITEMS))
    assert list(rows["references"]) == [[HARD, ""], ["Nothing."]]
    assert list(rows["id"]) == ["validation-0", "validation-1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[\n{}\n]", r"test\.json, line 2: 'tripleset' is not a list of \[subject, relation, object\]"),
        (dart_json([ITEMS[1], {**ITEMS[1], "tripleset": [["a", "b"]]}]), r"test\.json, line 1\d: 'tripleset' is not"),
        (
            '[\n {"tripleset": [],\n  "annotations": []}]',
            r"test\.json, line 2: 'annotations' is not a list with at least one",
        ),
        ('[{"tripleset": [], "annotations": [{"source": "x"}]}]', r"test\.json, line 1: 'text' is missing"),
        ('[{"tripleset": [], "annotations": [{"source": "x", "text": 3}]}]', r"line 1: 'text' must be a text, not int"),
        (
            '[{"tripleset": [], "annotations": [{"source": "x", "text": "\\ud83d"}]}]',
            r"line 1: 'text' holds half a character",
        ),
        ("[\n{},\n{,}\n]", r"test\.json, line 3: not JSON"),
        ("[{}\n{}]", r"test\.json, line 2: not JSON \(Expecting ',' delimiter at column 1"),
        ("[{},\n", r"test\.json, line 2: not JSON"),
        ('{"a": 1}', r"test\.json, line 1: a JSON list is expected"),
        ("[]", r"test\.json has no rows"),
        (b"[\n\xfe]", r"test\.json, line 2: not UTF-8"),
    ],
)
def test_dart_broken_items_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, dart, "test", content)


# --- DialogSum --------------------------------------------------------------------------------------------------------


def jsonl(*rows, line_end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + line_end for row in rows)


def test_dialogsum_rows(tmp_path):
    long = "#Person1#: " + "word " * 5000
    content = jsonl(
        {"dialogue": f"#Person1#: {HARD}\r\n#Person2#: Bye\u2028.", "summary": "A greets."},
        {"dialogue": "", "summary": "Silence."},
    )
    rows = load(
        tmp_path,
        dialogsum,
        "train",
        "\ufeff" + content.replace("}\n", "}\r\n") + jsonl({"dialogue": long, "summary": "Words."}),
    )
    assert list(rows["prompt"]) == prompts(dialogsum, f"#Person1#: {HARD}\n#Person2#: Bye\u2028.", "", long)
    assert list(rows["completion"]) == ["A greets.", "Silence.", "Words."]
    rows = load(
        tmp_path,
        dialogsum,
        "test",
        jsonl({"dialogue": "d", "summary1": "x", "summary2": "y", "summary3": "z", "topic1": "t"}),
    )
    assert list(rows["references"]) == [["x", "y", "z"]]
    rows = load(tmp_path, dialogsum, "validation", jsonl({"dialogue": "d", "summary": "x"}))
    assert rows[0] == {"id": "validation-0", "prompt": prompts(dialogsum, "d")[0], "references": ["x"]}


def test_dialogsum_strata_are_quintiles_of_length():
    names = dialogsum.length_strata(["word " * length for length in range(100)])
    assert Counter(names) == {f"length {number} of 5": 20 for number in range(1, 6)}
    assert names[0] == "length 1 of 5" and names[99] == "length 5 of 5"
    assert len(dialogsum.length_strata(["one"])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"dialogue": "d", "summary": "s"}\n\nnot json\n',
            r"train\.jsonl, line 3: not JSON \(Expecting value at column 1\)",
        ),
        ('["d"]\n', r"train\.jsonl, line 1: a JSON object is expected, not list"),
        ('{"dialogue": "d"}\n', r"train\.jsonl, line 1: 'summary' is missing"),
        ('{"summary": "s"}\n', r"train\.jsonl, line 1: 'dialogue' is missing"),
        ('{"dialogue": "d", "summary": " "}\n', r"train\.jsonl, line 1: the summary is empty"),
        ("\n", r"train\.jsonl has no rows"),
    ],
)
def test_dialogsum_broken_rows_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, dialogsum, "train", content)


@pytest.mark.parametrize("module", [e2e, dart, dialogsum])
@pytest.mark.parametrize(
    ("offline", "why"), [(True, "--offline"), (False, "HF_HUB_OFFLINE")]
)  # tests run without the Hub
def test_missing_files_are_named(tmp_path, module, offline, why):
    with pytest.raises(UserError, match=rf"{why} forbids contacting the Hub.*{module.FILES['test']}.*toy-nlg"):
        module.TASK.load(Source(tmp_path, offline=offline), "test")
    with pytest.raises(UserError, match=rf"{module.FILES['test']} does not exist.*--data-dir"):
        module.TASK.load(Source(tmp_path, offline=offline, named=True), "test")


# --- toy-nlg ----------------------------------------------------------------------------------------------------------


def test_toy_nlg_is_deterministic_and_disjoint():
    train, validation = (toy_nlg.TASK.load(Source(None), split) for split in ("train", "validation"))
    assert train.to_list() == toy_nlg.TASK.load(Source(None), "train").to_list()
    assert (len(train), len(validation)) == (toy_nlg.ROWS["train"], toy_nlg.ROWS["validation"])
    assert len(set(train["prompt"])) == len(train)
    assert not set(train["prompt"]) & set(validation["prompt"])
    assert train.column_names == ["id", "prompt", "completion", "stratum"]
    assert min(Counter(toy_nlg.TASK.strata(train)).values()) > 10
    assert {len(given) for given in validation["references"]} == {1, 2}


def test_toy_nlg_says_its_example():
    meaning = ("dog", "three", "brown", "sleep", "garden", "yes")
    assert toy_nlg.representation(meaning) == "animal[dog], number[three], colour[brown], does[sleep], place[garden]"
    assert toy_nlg.sentences(meaning) == (
        "Three brown dogs sleep in the garden.",
        "In the garden, three brown dogs sleep.",
    )
    assert toy_nlg.sentences(("cat", "one", "", "eat", "", "no"))[0] == "One cat does not eat."


# --- official files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [e2e, dart, dialogsum])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_official_rows(data_dir, module, split):
    if not (data_dir / module.FILES[split]).is_file():
        pytest.skip(f"needs {module.FILES[split]}")
    rows = module.TASK.load(Source(data_dir, offline=True), split)
    assert len(rows) == module.TASK.official_rows[split]
    assert len(set(rows["id"])) == len(rows)


@pytest.mark.parametrize("size", [10, 96, 4206])
def test_a_sample_of_e2e_has_as_many_rows_as_asked_for(data_dir, size):
    """96 rows, and a tenth of them: once 119 and 109, since each of 109 sets of slots gave a row."""
    strata = e2e.TASK.strata(e2e.TASK.load(Source(data_dir, offline=True), "train"))
    sample = stratified_sample(strata, size, 0)
    assert len(sample.indices) == size and sorted(sample.strata) == [f"slots: {count}" for count in range(3, 9)]
    assert len(sample.absent) == (1 if size == 10 else 0)


def test_official_references(data_dir):
    references = list(e2e.TASK.load(Source(data_dir, offline=True), "test")["references"])
    assert sum(map(len, references)) == 4693
    blank = [
        text
        for given in dart.TASK.load(Source(data_dir, offline=True), "test")["references"]
        for text in given
        if not text
    ]
    assert blank == [""]
    assert {len(given) for given in dialogsum.TASK.load(Source(data_dir, offline=True), "test")["references"]} == {3}
