from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lora_drop.errors import UserError
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source

GLUE = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"]


def load(tmp_path, task, name, content, split="validation"):
    path = tmp_path / "glue" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TASKS.get(task).load(Source(tmp_path, offline=True), split)


def test_quotes_are_text_and_line_ends_may_be_windows(tmp_path):
    rows = load(
        tmp_path,
        "rte",
        "RTE/dev.tsv",
        'index\tsentence1\tsentence2\tlabel\r\n7\t"He said\tit "ran"\tentailment\r\n8\tb\tc\tnot_entailment\r\n',
    )
    assert rows[0] == {"id": "0", "text": '"He said', "text_pair": 'it "ran"', "label": 0}
    assert list(rows["label"]) == [0, 1]


def test_cola_has_no_header(tmp_path):
    rows = load(tmp_path, "cola", "CoLA/train.tsv", "gj04\t1\t\tIt rains.\nks08\t0\t*\tRains it 😀.\n", "train")
    assert rows[1] == {"id": "1", "text": "Rains it 😀.", "label": 0}


def test_mrpc_has_a_byte_order_mark(tmp_path):
    rows = load(tmp_path, "mrpc", "MRPC/dev.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\ta\tb\n")
    assert rows[0] == {"id": "0", "text": "a", "text_pair": "b", "label": 1}


def test_stsb_scores_and_their_strata(tmp_path):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    rows = load(
        tmp_path,
        "stsb",
        "STS-B/train.tsv",
        header + "".join(f"{n}\tg\tf\ty\t0\ts\ts\ta\tb\t{v}\n" for n, v in enumerate([0, 2.5, 5])),
        "train",
    )
    assert list(rows["label"]) == [0.0, 2.5, 5.0]
    assert TASKS.get("stsb").strata(rows) == ["0-1", "2-3", "4-5"]
    with pytest.raises(UserError, match=r"train\.tsv, line 2: '5.1' is not a number from 0 to 5"):
        load(tmp_path, "stsb", "STS-B/train.tsv", header + "0\tg\tf\ty\t0\ts\ts\ta\tb\t5.1\n", "train")


def test_qqp_leaves_out_the_lines_that_official_loaders_leave_out(tmp_path):
    rows = load(
        tmp_path,
        "qqp",
        "QQP/train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n3\t1\t2\ta\tb\t1\n4\t1\tcut off\n",
        "train",
    )
    assert list(rows["text"]) == ["a"]
    with pytest.raises(
        UserError, match="line 2: 3 cells where 6 are expected"
    ):  # only the train file is known to have such lines
        load(tmp_path, "qqp", "QQP/dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n4\t1\tcut off\n")


MNLI_HEADER = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"


def test_mnli_reports_its_halves(tmp_path):
    (tmp_path / "glue" / "MNLI").mkdir(parents=True)
    (tmp_path / "glue" / "MNLI" / "dev_mismatched.tsv").write_text(MNLI_HEADER + "0\tg\tc\td\tneutral\tcontradiction\n")
    rows = load(tmp_path, "mnli", "MNLI/dev_matched.tsv", MNLI_HEADER + "0\tg\ta\tb\tneutral\tentailment\n")
    assert list(rows["id"]) == ["matched-0", "mismatched-0"]
    assert list(rows["group"]) == ["matched", "mismatched"] and list(rows["label"]) == [0, 2]
    half = TASKS.get("mnli").load(Source(tmp_path, offline=True), "validation_mismatched")
    assert list(half["text"]) == ["c"]


def test_a_broken_half_of_mnli_is_not_taken_for_a_missing_one(tmp_path):
    with pytest.raises(UserError, match="unknown label") as caught:
        load(tmp_path, "mnli", "MNLI/dev_matched.tsv", MNLI_HEADER + "0\tg\ta\tb\tneutral\t-\n")
    assert "one half" not in str(caught.value)


def test_mnli_with_one_half_says_how_to_use_it(tmp_path):
    with pytest.raises(UserError, match=r"eval\.split=validation_matched"):
        load(tmp_path, "mnli", "MNLI/dev_matched.tsv", MNLI_HEADER + "0\tg\ta\tb\tneutral\tentailment\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("index\tsentence1\tsentence2\tlabel\n1\ta\tb\n", "line 2: 3 cells where 4 are expected"),
        (
            "index\tsentence1\tsentence2\tlabel\n1\ta\tb\tmaybe\n",
            "line 2: unknown label 'maybe'; allowed: entailment, not_entailment",
        ),
        ("index\tsentence1\tlabel\n1\ta\tentailment\n", "no column 'sentence2'"),
        (b"index\tsentence1\tsentence2\tlabel\n1\t\xff\tb\tentailment\n", "line 2: not UTF-8"),
        ("index\tsentence1\tsentence2\tlabel\n", "has no rows"),
    ],
)
def test_rows_that_cannot_be_read_name_file_and_line(tmp_path, content, text):
    with pytest.raises(UserError, match=r"RTE.dev\.tsv") as caught:
        load(tmp_path, "rte", "RTE/dev.tsv", content)
    assert text in str(caught.value)


def test_missing_files_say_where_they_belong(tmp_path):
    for offline, why in ((True, "--offline"), (False, "HF_HUB_OFFLINE")):  # tests run without the Hub
        with pytest.raises(UserError, match=rf"{why} forbids.*glue.RTE.train\.tsv.*LORA_DROP_DATA"):
            TASKS.get("rte").load(Source(tmp_path, offline=offline), "train")


def test_folders_and_names_are_checked(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        Source.resolve(str(tmp_path / "none"))
    monkeypatch.setenv("LORA_DROP_DATA", str(tmp_path))
    assert Source.resolve(None).data_dir == tmp_path
    with pytest.raises(UserError, match="Did you mean 'rte'"):
        TASKS.get("rtee")
    with pytest.raises(UserError, match="validation_matched"):
        TASKS.get("mnli").check_split("validaton")


def test_every_task_is_complete():
    for name in TASKS.names():
        task = TASKS.get(name)
        assert task.name == name and task.primary in task.metrics and task.version >= 1
        assert (
            task.outputs == (0 if task.kind == "generation" else len(task.labels) or 1)
            and task.official_rows["train"] > 0
        )


class TestToy:
    def rows(self, split):
        return TASKS.get("toy-nli").load(Source(None), split)

    def test_it_is_the_same_everywhere_and_balanced(self):
        train, validation = self.rows("train"), self.rows("validation")
        assert (len(train), len(validation)) == (1600, 400)
        assert Counter(train["label"]) == {0: 800, 1: 800} and Counter(validation["label"]) == {0: 200, 1: 200}
        assert train[0] == {
            "id": "train-0",
            "text": "some old buildings disappear.",
            "text_pair": "some buildings disappear.",
            "label": 0,
        }
        pairs = [set(zip(rows["text"], rows["text_pair"], strict=True)) for rows in (train, validation)]
        assert len(pairs[0]) == 1600 and not pairs[0] & pairs[1]

    @pytest.mark.parametrize("marks", [("", ""), ("p", "h")])
    def test_a_bag_of_words_does_not_solve_it(self, marks):
        def words(rows):
            return [
                " ".join([marks[0] + word for word in one.split()] + [marks[1] + word for word in two.split()])
                for one, two in zip(rows["text"], rows["text_pair"], strict=True)
            ]

        train, validation = self.rows("train"), self.rows("validation")
        vectors = CountVectorizer().fit(words(train))
        model = LogisticRegression(max_iter=1000).fit(vectors.transform(words(train)), train["label"])
        assert model.score(vectors.transform(words(validation)), validation["label"]) < 0.6


WHOLE = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277)}


@pytest.mark.parametrize("name", GLUE)
def test_every_line_of_the_real_files_is_a_row(name, data_dir):
    task = TASKS.get(name)
    splits = {
        "train": task.files["train"],
        **{split: file for split, file in task.files.items() if (data_dir / file).is_file()},
    }
    for split, file in splits.items():
        lines = len((data_dir / file).read_bytes().rstrip(b"\n").split(b"\n")) - (name != "cola")
        rows = task.load(Source(data_dir, offline=True), split)
        assert len(rows) == lines
        if name in WHOLE:
            assert len(rows) == WHOLE[name][split != "train"] == task.official_rows[split]
    assert len(set(task.strata(task.load(Source(data_dir, offline=True), "train")))) == (
        5 if name == "stsb" else len(task.labels)
    )
