import json

import pytest
from scipy.stats import pearsonr

from lora_drop.errors import UserError
from lora_drop.evaluation.metrics.bleu import dart_form
from lora_drop.evaluation.metrics.texts import score_texts
from lora_drop.evaluation.predictions import read_outputs, score_predictions
from lora_drop.registry import TASKS
from lora_drop.tasks import dart, dialogsum, e2e, toy_nlg
from lora_drop.tasks.base import Source


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- files of predictions ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_e2e(tmp_path):
    """Three MRs, four references."""
    (tmp_path / "e2e-dataset").mkdir()
    rows = 'mr,ref\n"name[A], area[x]",A is in x.\n"name[A], area[x]",x has A.\nname[B],B is there.\n"name[C], price[£20]",C costs £20.\n'
    write(tmp_path / "e2e-dataset/testset_w_refs.csv", rows)
    return Source(tmp_path, offline=True)


PERFECT = ["A is in x.", "B is there.", "C costs £20."]


def outputs(tmp_path, source, name, content):
    return read_outputs(e2e.TASK, write(tmp_path / name, content), e2e.TASK.load(source, "test")).predictions


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "A is in x.\nB is there.\nC costs £20.\n"),
        ("windows.txt", "\ufeffA is in x.\r\n B is there.\r\nC costs £20."),
        (
            "run.jsonl",
            '{"prediction": "A is in x."}\n{"prediction": "B is there."}\n\n{"prediction": "C costs £20."}\n',
        ),
        (
            "ids.txt",
            '{"prediction": "B is there.", "id": "test-1"}\n{"id": "test-2", "prediction": "C costs £20."}\n'
            '{"id": "test-0", "prediction": "A is in x."}\n',
        ),
        (
            "sheff.tsv",
            "\ufeffMR\toutput\r\nname[A], area[x]\tA is in x.\r\nname[B]\tB is there.\r\nname[C], price[£20]\tC costs £20.\r\n",
        ),
        (
            "tnt.tsv",
            "MR\toutput\n'name[A], area[x]'\t'A is in x.'\n'name[B]'\t'B is there.'\n'name[C], price[£20]'\t'C costs £20.'\n",
        ),
        (
            "no-header",
            '"name[A], area[x]"\t"A is in x."\n\nname[B]\tB is there.\n"name[C], price[Â£20]"\tC costs Â£20.\n',
        ),
        (
            "cells.csv",
            '"mr","ref"\n"name[A], area[x]","A is in x."\n"name[B]","B is there."\n"name[C], price[£20]","C costs Ł20."\n',
        ),
    ],
)
def test_formats_of_prediction_files(tmp_path, small_e2e, name, content):
    file = "no-header.tsv" if name == "no-header" else name
    assert outputs(tmp_path, small_e2e, file, content) == PERFECT


def test_the_result_has_the_structure_of_metrics_json(tmp_path, small_e2e):
    path = write(tmp_path / "out.txt", "\n".join(PERFECT))
    result = score_predictions(e2e.TASK, str(path), small_e2e)
    assert (result["task"], result["split"], result["examples"], result["primary"]) == ("e2e", "test", 3, "sacrebleu")
    assert list(result["metrics"]) == list(result["signatures"]) == list(e2e.TASK.metrics)
    assert result["metrics"]["e2e_rouge_l"] == pytest.approx(100)
    assert json.loads(json.dumps(result)) == result


def test_an_empty_last_prediction_is_a_prediction(tmp_path, small_e2e):
    assert outputs(tmp_path, small_e2e, "out.txt", "A\nB\n") == ["A", "B", ""]
    assert outputs(tmp_path, small_e2e, "out.txt", "A\nB\n\n") == ["A", "B", ""]
    assert outputs(tmp_path, small_e2e, "out.tsv", "MR\toutput\nname[A], area[x]\t\nname[B]\tb\n") == ["", "b"]
    assert outputs(tmp_path, small_e2e, "out.txt", "A\u2028B\nC\x85\nD") == ["A\u2028B", "C", "D"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", "A\nB\nC\nD\n", r"short\.txt holds 4 predictions, but the test split of e2e has 3 items.*testset_w_refs\.csv"),
        ("a.tsv", "MR\toutput\nname[B]\tB\nname[B]\tB\nname[B]\tB\n", r"a\.tsv, line 2: the MR is 'name\[B\]', but item 1 .* is 'name\[A\]"),
        ("price.tsv", "MR\toutput\nname[A], area[x]\tA\nname[B]\tB\nname[C], price[£25]\tC\n", r"tsv, line 4: the MR is .*25\]', but item 3"),
        ("two.tsv", "MR\toutput\nname[A], area[x]\tA\nname[C], price[£20]\tC\n", r"two\.tsv holds 2 predictions, but .* has 3 items"),
        ("b.tsv", "MR\toutput\nname[A], area[x]\tA\tB\n", r"b\.tsv, line 2: 3 cells where MR and output are expected"),
        ("c.jsonl", '{"prediction": "a"}\n{"text": "b"}\n', r"c\.jsonl, line 2: there is no text under 'prediction'"),
        ("d.jsonl", '{"prediction": "a"}\n{"prediction"\n', r"d\.jsonl, line 2: not JSON"),
        ("e.jsonl", '{"prediction": "a", "id": "test-0"}\n{"prediction": "a", "id": "test-0"}\n', r"line 2: a second prediction for 'test-0'"),
        ("g.jsonl", '{"prediction": "a", "id": 7}\n{"prediction": "a", "id": 7}\n', r"line 2: a second prediction for 7"),
        ("f.txt", b"fine\n\xff\n", r"f\.txt, line 2: not UTF-8"),
    ],
)  # fmt: skip
def test_mistakes_in_prediction_files(tmp_path, small_e2e, name, content, message):
    with pytest.raises(UserError, match=message):
        score_predictions(e2e.TASK, write(tmp_path / name, content), small_e2e, "test")


def test_a_systems_texts_are_compared_as_they_are_and_a_models_in_the_form_of_the_references(tmp_path, small_e2e):
    """DART's references are lower-cased and tokenised."""
    objects = "\n".join(json.dumps({"prediction": text}) for text in PERFECT)
    rows = e2e.TASK.load(small_e2e, "test")
    table = "MR\toutput\nname[A], area[x]\tA is in x.\nname[B]\tB is there.\nname[C], price[£20]\tC costs £20.\n"
    files = {"a.txt": "\n".join(PERFECT), "b.jsonl": objects, "c.tsv": table}
    read = {name: read_outputs(e2e.TASK, write(tmp_path / name, content), rows) for name, content in files.items()}
    assert {name: found.as_written for name, found in read.items()} == {"a.txt": True, "b.jsonl": False, "c.tsv": True}

    text = "Hawaii Five-O's episode, in 1982."
    items = [{"tripleset": [["a", "b", "c"]], "annotations": [{"source": "e2e", "text": text}]}]
    path = tmp_path / dart.FILES["test"]
    path.parent.mkdir(parents=True)
    write(path, json.dumps(items))
    scores = {}
    for name, content in {"x.txt": text, "y.jsonl": json.dumps({"prediction": text}), "z.txt": dart_form(text)}.items():
        found = score_predictions(dart.TASK, write(tmp_path / name, content), Source(tmp_path, offline=True), "test")
        scores[name] = found["metrics"]["dart_bleu"]
    assert scores["x.txt"] < 40 and [scores[name] for name in ("y.jsonl", "z.txt")] == pytest.approx([100, 100])


def test_halves_of_a_split_are_scored_apart_also_from_a_file(tmp_path):
    (tmp_path / "glue" / "MNLI").mkdir(parents=True)
    for half, labels in (("matched", ["neutral", "entailment"]), ("mismatched", ["neutral"] * 3)):
        lines = ["index\tsentence1\tsentence2\tgold_label", *(f"0\ta\tb\t{label}" for label in labels)]
        write(tmp_path / f"glue/MNLI/dev_{half}.tsv", "\n".join(lines) + "\n")
    path = write(tmp_path / "labels.txt", "neutral\nneutral\nneutral\nneutral\nentailment\n")
    objects = [json.dumps({"prediction": f" {label}\n"}) for label in path.read_text().split()]
    for file in (path, write(tmp_path / "labels.jsonl", "\n".join(objects))):
        found = score_predictions(TASKS.get("mnli"), file, Source(tmp_path, offline=True), "validation")["metrics"]
        assert found == pytest.approx({"accuracy": 3 / 5, "accuracy_matched": 1 / 2, "accuracy_mismatched": 2 / 3})


def test_accents_that_were_garbled_are_repaired_and_quotes_undoubled_in_quoted_cells_alone(tmp_path, small_e2e):
    given = (
        "MR\toutput\nname[A], area[x]\tA CafÃ© or cafã©.\n"
        '"name[B]"\t"B is ""there""."\nname[C], price[£20]\tC ""costs"" £20.\n'
    )
    expected = ["A Café or café.", 'B is "there".', 'C ""costs"" £20.']
    assert outputs(tmp_path, small_e2e, "out.tsv", given) == expected


def test_missing_file_and_unknown_split(tmp_path, small_e2e):
    with pytest.raises(UserError, match="does not exist"):
        score_predictions(e2e.TASK, tmp_path / "none.txt", small_e2e)
    with pytest.raises(UserError, match="e2e has no split 'dev'"):
        score_predictions(e2e.TASK, tmp_path / "none.txt", small_e2e, "dev")


def test_labels_are_scored_too(tmp_path):
    task = TASKS.get("toy-nli")
    labels = [task.labels[index] for index in task.load(Source(None), "validation")["label"]]
    result = score_predictions(task, write(tmp_path / "labels.txt", "\n".join(labels)), Source(None))
    assert result["metrics"] == {"accuracy": 1.0}
    with pytest.raises(UserError, match=r"prediction 1: unknown label 'entails'\. Did you mean 'entailment'"):
        score_predictions(task, write(tmp_path / "labels.txt", "\n".join(["entails", *labels[1:]])), Source(None))


def test_scores_are_numbers_of_the_file_or_refused(tmp_path):
    header = "\t".join(("index", "sentence1", "sentence2", "score"))
    (tmp_path / "glue" / "STS-B").mkdir(parents=True)
    write(tmp_path / "glue/STS-B/dev.tsv", "\n".join([header, "0\ta\tb\t0.5", "1\ta\tb\t2", "2\ta\tb\t4.25", ""]))
    source, task = Source(tmp_path, offline=True), TASKS.get("stsb")
    objects = "\n".join(json.dumps({"prediction": value}) for value in (1.5, 3, " 4 "))
    for name, content in (("a.txt", "1.5\n3\n4"), ("a.jsonl", objects)):
        found = score_predictions(task, write(tmp_path / name, content), source)["metrics"]
        assert found == pytest.approx({"spearman": 1.0, "pearson": pearsonr([1.5, 3, 4], [0.5, 2, 4.25]).statistic})
    for wrong in ("much", "nan", ""):
        with pytest.raises(UserError, match=f"prediction 2: '{wrong}' is not a number"):
            score_predictions(task, write(tmp_path / "b.txt", f"1\n{wrong}\n4"), source)


def test_toy_nlg_answers_score_100(tmp_path):
    rows = toy_nlg.TASK.load(Source(None), "validation")
    path = write(
        tmp_path / "out.jsonl", "".join(json.dumps({"prediction": given[-1]}) + "\n" for given in rows["references"])
    )
    assert score_predictions(toy_nlg.TASK, path, Source(None))["metrics"]["sacrebleu"] == pytest.approx(100)


# --- published outputs ------------------------------------------------------------------------------------------------

PUBLISHED_E2E = {
    "tgen": (65.93, 68.50),
    "adapt": (50.92, 58.72),
    "slug": (66.19, 67.72),
    "sheff1": (60.15, 67.78),
    "zhaw1": (58.64, 59.98),
    "tuda": (56.57, 66.14),
    "tnt1": (65.61, 68.39),
}


@pytest.fixture
def system_outputs(data_dir):
    folder = data_dir / "system_outputs"
    if not folder.is_dir():
        pytest.skip(f"needs the published system outputs in {folder}")
    return folder


@pytest.mark.parametrize("system", list(PUBLISHED_E2E))
def test_published_scores_of_the_e2e_challenge(data_dir, system_outputs, system):
    rows = e2e.TASK.load(Source(data_dir, offline=True), "test")
    predictions = read_outputs(e2e.TASK, system_outputs / f"e2e/{system}.tsv", rows).predictions
    names, prompts = ["e2e_bleu", "e2e_rouge_l", "slots"], list(rows["prompt"])
    scores = score_texts(names, predictions, list(rows["references"]), prompts=prompts).metrics
    bleu, rouge = PUBLISHED_E2E[system]
    assert scores["e2e_bleu"] == pytest.approx(bleu, abs=0.0051)
    assert scores["e2e_rouge_l"] == pytest.approx(rouge, abs=0.0051)
    assert 83 < scores["slots"] < 99  # no published numbers; the first references have 87.9


def test_published_score_of_dart(data_dir, system_outputs):
    rows = dart.TASK.load(Source(data_dir, offline=True), "test")
    path = system_outputs / "dart/bart-large_dart.txt"
    predictions = read_outputs(dart.TASK, path, rows).predictions
    for as_written in (True, False):
        scores = score_texts(["dart_bleu"], predictions, list(rows["references"]), as_written=as_written)
        assert scores.metrics["dart_bleu"] == pytest.approx(48.56, abs=0.0051)


def test_dart_references_are_those_of_its_reference_files(data_dir, system_outputs):
    rows = dart.TASK.load(Source(data_dir, offline=True), "test")
    files = [system_outputs / f"dart/all-delex-reference{number}.lex" for number in range(3)]
    columns = [[line.strip() for line in file.read_text(encoding="utf-8").split("\n")[:-1]] for file in files]
    ours = [[dart_form(text) for text in [*given, "", ""][:3]] for given in rows["references"]]
    assert [list(item) for item in zip(*columns, strict=True)] == ours


def test_published_scores_of_dialogsum(data_dir, system_outputs):
    """ROUGE is published as the middle of a bootstrap; the plain means are 45.91, 21.32, 38.71."""
    scores = score_predictions(
        dialogsum.TASK, system_outputs / "dialogsum/test_output.txt", Source(data_dir, offline=True)
    )
    metrics = scores["metrics"]
    rouge = [metrics[f"rouge{kind}_stem"] for kind in "12L"]
    assert rouge == pytest.approx([45.91, 21.32, 38.71], abs=0.0051)
    assert rouge == pytest.approx([45.9458, 21.3612, 38.7189], abs=0.05)
    assert metrics["char_bleu4"] == pytest.approx(43.37, abs=0.0051)
    assert metrics["rouge_chinese_l"] == pytest.approx(42.22, abs=0.0051)
    assert metrics["sacrebleu"] == pytest.approx(34.16, abs=0.0051)
