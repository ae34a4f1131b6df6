import csv
import json
import math
import re
import socket
import subprocess
import sys

import pytest

from lora_drop.errors import UserError
from lora_drop.evaluation.metrics.bleu import dart_form
from lora_drop.evaluation.metrics.penn_treebank import penn_tokens
from lora_drop.evaluation.metrics.rouge import coco_rouge_l, longest_common_subsequence
from lora_drop.evaluation.metrics.texts import METRICS, score_texts

PREDICTIONS = [
    "The Mill is a cheap pub near Café Rouge.",
    "There's a family-friendly coffee shop (5 out of 5), it isn't cheap.",
    "Blue Spice – £20-25!",
    "שלום עולם 😀",
]
REFERENCES = [
    ["The Mill is a pub near Café Rouge. It is cheap.", "A cheap pub near Café Rouge is The Mill."],
    [
        "A coffee shop that is family-friendly is not cheap.",
        "It's an expensive family friendly coffee shop, 5 out of 5.",
    ],
    ["Blue Spice costs £20-25.", "Blue Spice is in the £20 to £25 range."],
    ["שלום לכל העולם 😀", "Hello world."],
]


def score(name, predictions=PREDICTIONS, references=REFERENCES, **options):
    return score_texts([name], predictions, references, **options).metrics[name]


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- BLEU -------------------------------------------------------------------------------------------------------------


def sacrebleu_command(tmp_path, *options):
    hypotheses = write(tmp_path / "hypotheses", "".join(f"{text}\n" for text in PREDICTIONS))
    columns = [write(tmp_path / f"references{n}", "".join(f"{given[n]}\n" for given in REFERENCES)) for n in range(2)]
    command = [sys.executable, "-m", "sacrebleu", *columns, "-i", hypotheses, "--format", "json", "-w", "12", *options]
    return json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)


def test_sacrebleu_agrees_with_its_command_line_to_the_last_digit(tmp_path):
    theirs = sacrebleu_command(tmp_path)
    ours = score_texts(["sacrebleu"], PREDICTIONS, REFERENCES)
    assert round(ours.metrics["sacrebleu"], 12) == theirs["score"] > 10
    assert ours.signatures["sacrebleu"] == theirs["signature"]
    assert "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp" in ours.signatures["sacrebleu"]


def test_e2e_bleu_is_lower_cased_and_not_smoothed(tmp_path):
    theirs = sacrebleu_command(tmp_path, "--lowercase", "--smooth-method", "none")
    assert round(score("e2e_bleu"), 12) == theirs["score"]
    assert score("e2e_bleu", ["THE MILL IS A PUB ."], [["the mill is a pub."]]) == pytest.approx(100)
    assert score("e2e_bleu", ["a b c"], [["a b c d"]]) == 0  # no 4-gram at all
    assert score("sacrebleu", ["a b c d x"], [["a b c d e"]]) == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_items_may_have_different_numbers_of_references():
    texts = score_texts(["sacrebleu"], ["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]])
    assert texts.metrics["sacrebleu"] == pytest.approx(100)
    assert "nrefs:var" in texts.signatures["sacrebleu"]


def test_dart_bleu_counts_blank_references_as_length_zero():
    """A prediction of 5 words is nearer to a blank reference (5 away) than to one of 11 words (6 away): no brevity penalty."""
    prediction, long = "a b c d e", "a b c d e f g h i j k"
    assert score("dart_bleu", [prediction], [[long]]) == pytest.approx(100)
    assert score("dart_bleu", [prediction], [[long] * 3]) == pytest.approx(100 * math.exp(1 - 11 / 5))
    assert score("dart_bleu", [prediction], [[long, long, ""]]) == pytest.approx(100)
    assert score("dart_bleu", [prediction], [[long] * 3 + [prediction]]) < 50  # a fourth annotation does not count


def test_dart_bleu_keeps_case_unless_the_prediction_is_raw():
    reference = ["Hawaii Five-O's episode, in 1982."]
    assert dart_form(reference[0]) == "hawaii five - o ' s episode , in 1982 ."
    assert score("dart_bleu", [dart_form(reference[0])], [reference], as_written=True) == pytest.approx(100)
    assert score("dart_bleu", reference, [reference], as_written=True) < 40
    raw = score_texts(["dart_bleu"], reference, [reference])
    assert raw.metrics["dart_bleu"] == pytest.approx(100)
    assert "predictions:tokenised-lower-cased" in raw.signatures["dart_bleu"]
    assert score("dart_bleu", ["a b c d\xa0e"], [["a b c d e"]], as_written=True) < 100  # a no-break space is no space


# --- ROUGE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_agrees_with_its_command_line_to_the_last_digit(tmp_path, stemmer):
    predictions = ["The cats are sleeping in the gardens.", "a b c d", "Nothing shared", ""]
    references = ["A cat sleeps in the garden.", "b a c d e", "whatever, else", "text"]
    write(tmp_path / "predictions", "".join(f"{text}\n" for text in predictions))
    write(tmp_path / "targets", "".join(f"{text}\n" for text in references))
    files = [f"--target_filepattern={tmp_path}/targets", f"--prediction_filepattern={tmp_path}/predictions"]
    command = [
        sys.executable,
        "-m",
        "rouge_score.rouge",
        *files,
        f"--output_filename={tmp_path}/out.csv",
        "--noaggregate",
    ]
    subprocess.run([*command, *(["--use_stemmer"] if stemmer else [])], capture_output=True, check=True)
    with (tmp_path / "out.csv").open() as file:
        theirs = list(csv.DictReader(file))
    names = (
        {"rouge1-F": "rouge1_stem", "rouge2-F": "rouge2_stem", "rougeL-F": "rougeL_stem"}
        if stemmer
        else {"rougeL-F": "rouge_l"}
    )
    for prediction, reference, row in zip(predictions, references, theirs, strict=True):
        for column, name in names.items():
            assert f"{score(name, [prediction], [[reference]]) / 100:.6f}" == row[column]


def test_rouge_l_over_several_references():
    """Against `a b c d` and `a x`, `a b` has F1 2·1·½/1.5 = ⅔ and 2·½·½/1 = ½."""
    both = score_texts(["rouge_l", "rouge_l_mean", "rougeL_stem"], ["a b"], [["a x", "a b c d"]]).metrics
    assert both == pytest.approx({"rouge_l": 200 / 3, "rouge_l_mean": 175 / 3, "rougeL_stem": 50})


def test_coco_rouge_l_takes_precision_and_recall_apart():
    """Precision 1 from the long reference, recall 1 from the short one, although no reference has both."""
    assert coco_rouge_l(["a", "b", "c"], [["a", "b", "c", "d", "e", "f"], ["b"]]) == pytest.approx(1.0)
    precision, recall = 2 / 3, 2 / 4
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert coco_rouge_l(["a", "x", "b"], [["a", "b", "c", "d"]]) == pytest.approx(expected)
    assert coco_rouge_l(["a"], [["b"]]) == 0
    assert longest_common_subsequence(["a", "b", "c", "b", "d", "a", "b"], ["b", "d", "c", "a", "b", "a"]) == 4
    assert score("e2e_rouge_l", [""], [["a b"]]) == 0
    assert score("e2e_rouge_l", ["The Mill!"], [["the mill."]]) == pytest.approx(100)


# Recorded from the original program: java -cp stanford-corenlp-3.4.1.jar edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Mill's pub isn't near, is it?", "the mill 's pub is n't near is it"),
        ("It’s family-friendly; they’ll love it – don’t!", "it 's family-friendly they 'll love it do n't"),
        ("Prices are £20-25. From £20-£25.", "prices are # 20-25 from # 20 # 25"),
        ("A 3.5/5 or 3/5 rating (high) [5 stars]", "a 3.5 / 5 or 3/5 rating -lrb- high -rrb- -lsb- 5 stars -rsb-"),
        ("in the city centre.The food", "in the city centre.the food"),
        ("in the city center., near", "in the city center. near"),
        ("St. John's Rd. The end etc. and Mr. X", "st. john 's rd. the end etc. and mr. x"),
        ("vitamin C. The best", "vitamin c the best"),
        ("U.S. food at 5 p.m. in the U.K.", "u.s. food at 5 p.m. in the u.k."),
        ('He said "hello" to \'em... what?! No -- really', "he said hello to 'em what ?! no really"),
        ("You cannot, gonna, 'tis", "you can not gon na 't is"),
        ("O'Brien's hors d'oeuvres", "o'brien 's hors d'oeuvres"),
        ("AT&T and R&amp;D cost $5, €5 or 50%", "at&t and r&d cost $ 5 $ 5 or 50 %"),
        ("www.foo.com/bar a@b.com #tag :-)", "www.foo.com/bar a@b.com #tag :--rrb-"),
        ("2 1/2 cups 😀 of 日本語", "2\xa01/2 cups of 日本語"),
        ("non-U.S. 20-25pounds l20-25", "non-u.s. 20-25pounds l20-25"),
        ("Привет, мир. ... !", "привет мир"),
        ("", ""),
    ],
)
def test_penn_treebank_tokens(text, tokens):
    assert penn_tokens(text) == (tokens.split(" ") if tokens else [])


# --- the character protocol -------------------------------------------------------------------------------------------


def test_character_bleu_by_hand():
    """`abcde` against `abcdf`: 4/5 characters, 3/4 pairs, 2/3 triples, 1/2 quadruples, no brevity penalty; only the first reference."""
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert score("char_bleu4", ["abcde"], [["abcdf", "abcde"]]) == pytest.approx(expected)
    assert score("char_bleu4", ["abcde", ""], [["abcdf"], ["x"]]) == pytest.approx(expected / 2)
    assert score("char_bleu4", ["日本語です"], [["日本語です"]]) == pytest.approx(100)


def test_rouge_chinese_by_hand():
    """jieba makes tokens of words and of the spaces between them, which the package drops again."""
    assert score("rouge_chinese_l", ["a b"], [["a b c d", "a b"]]) == pytest.approx(200 / 3, abs=1e-3)
    assert score("rouge_chinese_l", ["我喜欢北京", " "], [["我喜欢北京"], ["x"]]) == pytest.approx(50, abs=1e-3)


def test_missing_packages_are_skipped_and_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    scores = score_texts(["rouge_chinese_l", "rouge_l"], ["a"], [["a"]])
    assert list(scores.metrics) == ["rouge_l"]
    assert re.search(r"jieba.*pip install 'lora-drop\[paper-metrics\]'", scores.skipped["rouge_chinese_l"])


# --- slots ------------------------------------------------------------------------------------------------------------


def test_slots_are_the_values_of_the_prompt_that_the_text_mentions():
    """Rows of the official files. The first text lacks `pub` of four values, familyFriendly apart; the second none of three."""
    prompts = [
        "name[The Punter], eatType[pub], priceRange[less than £20], familyFriendly[yes], near[Café Sicilia]",
        "name[Blue Spice], customer rating[5 out of 5], area[riverside]\n\nDescription of the restaurant:\n",
    ]
    texts = ["the punter, near CAFÉ SICILIA, costs less than\n£20.", "Blue Spice is on the riverside (5 out of 5)."]
    scores = score_texts(["slots"], texts, [["x"], ["x"]], prompts=prompts)
    assert scores.metrics["slots"] == pytest.approx(100 * 6 / 7)  # of all values, not the mean of 3/4 and 1
    assert "without:familyFriendly" in scores.signatures["slots"]
    assert (
        score("slots", ["The Mill costs under £20."], [["x"]], prompts=["name[The Mill], price[less than £20]"]) == 50
    )


def test_without_prompts_or_values_there_are_no_slots():
    scores = score_texts(["slots", "rouge_l"], ["a"], [["a"]])
    assert list(scores.metrics) == ["rouge_l"] and scores.skipped == {"slots": "needs the prompts"}
    assert not score_texts(["slots"], ["a"], [["a"]], prompts=["familyFriendly[yes], food[]"]).metrics


# --- all of them ------------------------------------------------------------------------------------------------------


def test_all_metrics_run_without_network_and_say_how_they_count(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    scores = score_texts(list(METRICS), PREDICTIONS, REFERENCES, prompts=["name[The Mill]"] * 4)
    assert list(scores.metrics) == list(scores.signatures) == list(METRICS)
    assert all(0 <= value <= 100 for value in scores.metrics.values())
    text, prompts = "The Mill is a cheap pub.", ["name[The Mill], priceRange[cheap]"] * 2
    perfect = score_texts(list(METRICS), [text] * 2, [[text]] * 2, prompts=prompts)
    assert all(value == pytest.approx(100, abs=1e-3) for value in perfect.metrics.values())


def test_wrong_calls_are_named():
    with pytest.raises(UserError, match=r"Unknown metric 'rouge_L'\. Did you mean 'rouge_l'"):
        score("rouge_L")
    with pytest.raises(UserError, match="There are 4 predictions for 3 items"):
        score("rouge_l", PREDICTIONS, REFERENCES[:3])
    with pytest.raises(UserError, match="Item 2 has no reference"):
        score("rouge_l", ["a", "b"], [["a"], []])


def test_e2e_bleu_is_0_where_no_four_words_are_shared():

    assert score_texts(["e2e_bleu"], ["a b c x"], [["a b c d"]]).metrics["e2e_bleu"] == 0
