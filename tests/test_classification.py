import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from models import backbone
from scipy import stats
from sklearn import metrics

from lora_drop.data.sentences import collator, encode
from lora_drop.errors import UserError
from lora_drop.evaluation.classifier import evaluate_classifier, predict
from lora_drop.evaluation.metrics.classification import constant_baseline, evaluate_predictions
from lora_drop.evaluation.metrics.several import constant_several, evaluate_several
from lora_drop.registry import TASKS


def test_metrics_equal_their_definitions():
    generator = np.random.default_rng(0)
    actual, predicted = generator.integers(0, 2, 100), generator.integers(0, 2, 100)
    true_positive = int(((predicted == 1) & (actual == 1)).sum())
    precision, recall = true_positive / (predicted == 1).sum(), true_positive / (actual == 1).sum()
    found = evaluate_predictions(TASKS.get("mrpc"), predicted.tolist(), actual.tolist())
    assert found == {
        "accuracy": pytest.approx((predicted == actual).mean()),
        "f1": pytest.approx(2 * precision * recall / (precision + recall)),
    }
    cola = evaluate_predictions(TASKS.get("cola"), predicted.tolist(), actual.tolist())
    assert cola["matthews_correlation"] == pytest.approx(np.corrcoef(predicted, actual)[0, 1])
    assert cola["matthews_correlation"] == pytest.approx(metrics.matthews_corrcoef(actual, predicted))


def test_correlations():
    generator = np.random.default_rng(0)
    actual, predicted = generator.random(50), generator.random(50)
    found = evaluate_predictions(TASKS.get("stsb"), predicted.tolist(), actual.tolist())
    assert found["spearman"] == pytest.approx(np.corrcoef(stats.rankdata(predicted), stats.rankdata(actual))[0, 1])
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted, actual)[0, 1])


def test_constant_predictions_score_zero_without_a_warning():
    assert evaluate_predictions(TASKS.get("stsb"), [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]) == {
        "spearman": 0.0,
        "pearson": 0.0,
    }
    assert evaluate_predictions(TASKS.get("cola"), [1, 1, 1], [0, 1, 1])["matthews_correlation"] == 0.0
    assert evaluate_predictions(TASKS.get("stsb"), [1.0, 1.0 + 1e-15, 1.0], [0.0, 1.0, 2.0])["pearson"] == 0.0
    assert evaluate_predictions(TASKS.get("cola"), [1, 1], [1, 1]) == {"matthews_correlation": 0.0, "accuracy": 1.0}
    assert evaluate_predictions(TASKS.get("mrpc"), [0, 0], [0, 1])["f1"] == 0.0


def test_a_diverged_model_is_said():
    with pytest.raises(UserError, match="diverged"):
        evaluate_predictions(TASKS.get("stsb"), [1.0, float("nan")], [0.0, 1.0])


def test_a_classifier_that_puts_out_nan_is_said_to_have_diverged():
    model, tokenizer = models.backbone()
    rows = Dataset.from_dict({"id": ["0", "1"], "text": ["a text", "another"], "label": [0, 1]})
    encoded, *_ = encode(rows, tokenizer, 32)
    arguments = model, TASKS.get("cola"), rows, encoded, collator(tokenizer), 2
    assert len(evaluate_classifier(*arguments).predictions) == 2
    with torch.no_grad():
        next(reversed(list(model.parameters()))).fill_(torch.nan)
    with pytest.raises(UserError, match="predicts NaN: its training diverged"):
        evaluate_classifier(*arguments)


def test_nothing_is_written_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
    evaluate_predictions(TASKS.get("cola"), [0, 1], [0, 1])
    assert not list(tmp_path.iterdir())


def test_parts_are_reported_apart():
    found = evaluate_predictions(TASKS.get("mnli"), [0, 1, 2], [0, 1, 0], ["matched", "mismatched", "mismatched"])
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_matched": 1.0, "accuracy_mismatched": 0.5}
    assert evaluate_predictions(TASKS.get("mnli"), [0], [0], ["matched"]) == {"accuracy": 1.0}


def test_the_baseline_is_the_score_of_the_most_frequent_label():
    rows = [0, 1, 1, 1]
    assert constant_baseline(TASKS.get("mrpc"), rows) == {"accuracy": 0.75, "f1": pytest.approx(6 / 7)}
    assert constant_baseline(TASKS.get("cola"), rows) == {"matthews_correlation": 0.0, "accuracy": 0.75}
    assert constant_baseline(TASKS.get("stsb"), [0.0, 2.5, 5.0]) == {"spearman": 0.0, "pearson": 0.0}
    found = constant_baseline(TASKS.get("mnli"), [0, 0, 1], ["matched", "mismatched", "mismatched"])
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_matched": 1.0, "accuracy_mismatched": 0.5}


SEVERAL = ("f1_micro", "f1_macro", "accuracy")


def test_metrics_of_several_labels_a_row_equal_their_definitions():
    """Of the labels: 2 right, 1 too many, 2 missed; 1 right; and one that no row has or gets, whose F1 is 0."""
    actual = [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    given = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    one = 2 * 2 / (2 * 2 + 1 + 2)
    found = evaluate_several(SEVERAL, given, actual)
    assert list(found) == list(SEVERAL)
    assert found == pytest.approx({"f1_micro": 2 * 3 / (2 * 3 + 1 + 2), "f1_macro": (one + 1) / 3, "accuracy": 2 / 5})
    assert evaluate_several(["accuracy"], given, actual) == {"accuracy": found["accuracy"]}


@pytest.mark.parametrize(
    ("actual", "constant"),
    [
        ([[1, 1, 0], [1, 1, 0], [1, 0, 1]], [1, 1, 0]),  # what more than half of the rows have
        ([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], [1, 0, 0]),  # not what exactly half of them have
        ([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], [1, 0, 0]),  # else the most frequent label
        ([[1, 1, 0]] * 5 + [[1, 0, 0]] * 5 + [[0, 1, 0]] * 6 + [[0, 0, 1]] * 3, [1, 1, 0]),  # 10 and 11 of 19
    ],
)
def test_the_baseline_of_several_labels_a_row_is_what_most_rows_have(actual, constant):
    assert constant_several(SEVERAL, actual) == evaluate_several(SEVERAL, [constant] * len(actual), actual)
    for other in ([1] * len(constant), [0] * len(constant), constant[::-1]):
        assert constant_several(SEVERAL, actual) != evaluate_several(SEVERAL, [other] * len(actual), actual)


def test_a_correlation_with_constant_references_is_0_and_a_small_spread_is_a_ranking():
    assert evaluate_predictions(TASKS.get("stsb"), [0.0, 1.0, 2.0], [3.0, 3.0, 3.0]) == {
        "spearman": 0.0,
        "pearson": 0.0,
    }
    assert evaluate_predictions(TASKS.get("stsb"), [2.500, 2.501, 2.502], [0.0, 1.0, 2.0])["spearman"] == pytest.approx(
        1
    )


def test_the_metric_that_chooses_epochs_is_the_papers():
    found = {name: TASKS.get(name).primary for name in TASKS.own if not name.startswith("toy")}
    accuracy = dict.fromkeys(("rte", "mrpc", "sst2", "qnli", "mnli", "qqp"), "accuracy")
    texts = dict.fromkeys(("e2e", "dart", "dialogsum"), "sacrebleu")
    assert found == {**accuracy, **texts, "cola": "matthews_correlation", "stsb": "spearman"}


def test_outputs_of_rows_come_in_their_order_whatever_their_length():
    model, tokenizer = backbone()
    rows = Dataset.from_dict({"text": ["a", "a much longer text", "b c"], "label": [0, 1, 0]})
    encoded, *_ = encode(rows, tokenizer, 32)
    whole = predict(model.train(), encoded, collator(tokenizer), 2)
    alone = [predict(model, encoded.select([row]), collator(tokenizer), 1)[0] for row in range(3)]
    assert model.training and all(
        one.tolist() == pytest.approx(two.tolist(), abs=1e-5) for one, two in zip(whole, alone, strict=True)
    )
