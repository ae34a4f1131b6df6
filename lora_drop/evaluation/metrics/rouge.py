"""ROUGE in three protocols: rouge_score over all references, rouge_score with stemmer on the first, COCO captions."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

from rouge_score.rouge_scorer import RougeScorer

from lora_drop.evaluation.metrics.penn_treebank import penn_tokens
from lora_drop.evaluation.metrics.text_metric import TextMetric, mean_percent

COCO_BETA = 1.2


class RougeL(TextMetric):
    """ROUGE-L F1 (Lin 2004) from the package rouge_score, without stemmer, averaged over items.

    Per item, `rouge_l` takes the best reference and `rouge_l_mean` the mean over references.
    """

    names = ("rouge_l", "rouge_l_mean")
    description = "ROUGE-L F1 (rouge_score), best reference and mean over references"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scorer = RougeScorer(["rougeL"])
        scores = [
            [scorer.score(reference, prediction)["rougeL"].fmeasure for reference in given]
            for prediction, given in zip(predictions, references, strict=True)
        ]
        common = f"stemmer:no|items:mean|rouge_score:{version('rouge_score')}"
        self.signatures = {"rouge_l": f"references:best|{common}", "rouge_l_mean": f"references:mean|{common}"}
        return {
            "rouge_l": mean_percent([max(item) for item in scores]),
            "rouge_l_mean": mean_percent([sum(item) / len(item) for item in scores]),
        }


class RougeStem(TextMetric):
    """ROUGE-1, -2 and -L F1 from rouge_score, Porter-stemmed, FIRST reference, as in DialogSum's baseline."""

    names = ("rouge1_stem", "rouge2_stem", "rougeL_stem")
    description = "ROUGE-1/2/L F1 (rouge_score, stemmer), first reference"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        kinds = ["rouge1", "rouge2", "rougeL"]
        scorer = RougeScorer(kinds, use_stemmer=True)
        scores = [scorer.score(given[0], prediction) for prediction, given in zip(predictions, references, strict=True)]
        signature = f"references:first|stemmer:porter|items:mean|rouge_score:{version('rouge_score')}"
        self.signatures = dict.fromkeys(self.names, signature)
        return {f"{kind}_stem": mean_percent([item[kind].fmeasure for item in scores]) for kind in kinds}


class E2eRougeL(TextMetric):
    """The E2E challenge's ROUGE-L, taken from the COCO caption evaluation (Chen et al. 2015).

    Per item, F with β = 1.2 combines the highest precision and the highest recall of the longest common subsequence,
    each maximised over the references separately. F is then averaged over items. Tokens: see penn_treebank.py.
    """

    names: ClassVar[tuple[str, ...]] = ("e2e_rouge_l",)
    description = "ROUGE-L as the E2E challenge's measure_scores (COCO captions)"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = [
            coco_rouge_l(_tokens(prediction), [_tokens(reference) for reference in given])
            for prediction, given in zip(predictions, references, strict=True)
        ]
        self.signatures = {
            "e2e_rouge_l": "protocol:e2e-challenge|references:max-precision,max-recall|beta:1.2|tok:ptb-3.4.1|items:mean"
        }
        return {"e2e_rouge_l": mean_percent(scores)}


def coco_rouge_l(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return F = (1 + β²) P R / (R + β² P), with P and R the maxima over the references; 0 if nothing is shared."""
    common = [longest_common_subsequence(prediction, reference) for reference in references]
    precision = max(common) / len(prediction)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + COCO_BETA**2) * precision * recall / (recall + COCO_BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of tokens."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for position, other in enumerate(second, 1):
            above = row[position]
            row[position] = diagonal + 1 if token == other else max(above, row[position - 1])
            diagonal = above
    return row[-1]


def _tokens(text: str) -> list[str]:
    """Return the tokens, or one empty token if there are none: the original splits joined tokens at spaces again."""
    return penn_tokens(text) or [""]
