"""The character protocol: the BLEU-4 and ROUGE-L that LLaMA-Factory prints, and that match the paper's NLG tables.

Each prediction is compared only with its first reference, and the scores are averaged over items.

- `char_bleu4`: NLTK's sentence BLEU over CHARACTERS, smoothing method 3. Much higher than any BLEU over words.
- `rouge_chinese_l`: ROUGE-L F1 from the package rouge_chinese, over the tokens of jieba, a Chinese word segmenter.

Both need the extra paper-metrics.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from lora_drop.errors import UserError
from lora_drop.evaluation.metrics.text_metric import TextMetric, mean_percent


class CharBleu4(TextMetric):
    """Mean over items of NLTK's sentence BLEU (order 4, smoothing method 3) over characters, first reference."""

    names = ("char_bleu4",)
    description = "sentence BLEU over characters, first reference, mean over items"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        bleu = paper_package("nltk.translate.bleu_score")
        smoothing = bleu.SmoothingFunction().method3
        scores = [
            bleu.sentence_bleu([list(given[0])], list(prediction), smoothing_function=smoothing)
            for prediction, given in zip(predictions, references, strict=True)
        ]
        self.signatures = {"char_bleu4": f"references:first|tok:char|smooth:method3|items:mean|nltk:{version('nltk')}"}
        return {"char_bleu4": mean_percent(scores)}


class RougeChineseL(TextMetric):
    """Mean over items of rouge_chinese's ROUGE-L F1 over jieba's tokens, first reference; 0 for an empty text."""

    names = ("rouge_chinese_l",)
    description = "ROUGE-L F1 (rouge_chinese) over jieba tokens, first reference"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        rouge = paper_package("rouge_chinese").Rouge(metrics=["rouge-l"])
        jieba = paper_package("jieba")
        jieba.setLogLevel(logging.WARNING)
        scores = []
        for prediction, given in zip(predictions, references, strict=True):
            texts = [" ".join(jieba.cut(text)) for text in (prediction, given[0])]
            empty = not all(text.split() for text in texts)
            scores.append(0.0 if empty else float(rouge.get_scores(*texts)[0]["rouge-l"]["f"]))
        versions = "|".join(f"{package}:{version(package)}" for package in ("jieba", "rouge-chinese"))
        self.signatures = {"rouge_chinese_l": f"references:first|tok:jieba|items:mean|{versions}"}
        return {"rouge_chinese_l": mean_percent(scores)}


def paper_package(name: str) -> ModuleType:
    """Import a package of the extra paper-metrics. Raises UserError if it is not installed."""
    with warnings.catch_warnings():
        # jieba 0.42 has invalid escapes, leaves its dictionary file open and imports pkg_resources
        warnings.filterwarnings("ignore", category=SyntaxWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated.*", category=UserWarning)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"The metrics char_bleu4 and rouge_chinese_l need the package {error.name}. Install it with: pip install 'lora-drop[paper-metrics]'"
            ) from error
