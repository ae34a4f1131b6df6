"""BLEU in three protocols, all computed with sacreBLEU: its defaults, the E2E challenge's, and DART's."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sacrebleu

from lora_drop.evaluation.metrics.text_metric import TextMetric

DART_REFERENCES = 3


def _corpus_bleu(
    bleu: sacrebleu.BLEU, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, str]:
    """Return the score and sacreBLEU's signature. Items may have different numbers of references."""
    longest = max(map(len, references))
    columns = [[texts[number] if number < len(texts) else None for texts in references] for number in range(longest)]
    score = bleu.corpus_score(list(predictions), columns).score  # type: ignore[arg-type]  # None is allowed
    return score, str(bleu.get_signature())


class SacreBleu(TextMetric):
    """Corpus BLEU, all references, sacreBLEU's defaults (Post 2018): 13a tokens, cased, exponential smoothing."""

    names = ("sacrebleu",)
    description = "corpus BLEU, all references, sacreBLEU's defaults"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        score, signature = _corpus_bleu(sacrebleu.BLEU(force=True), predictions, references)
        self.signatures = {"sacrebleu": signature}
        return {"sacrebleu": score}


class E2eBleu(TextMetric):
    """The E2E challenge's BLEU (Dušek et al. 2020), mteval-v13a: all references, lower-cased, no smoothing."""

    names = ("e2e_bleu",)
    description = "BLEU as the E2E challenge's measure_scores (mteval-v13a)"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        bleu = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none", force=True)
        score, signature = _corpus_bleu(bleu, predictions, references)
        self.signatures = {"e2e_bleu": f"protocol:e2e-challenge|{signature}"}
        return {"e2e_bleu": score}


class DartBleu(TextMetric):
    """DART's BLEU (Nan et al. 2021), multi-bleu.perl on its `.lex` references.

    The references are the first three annotations, lower-cased and split into words and single punctuation marks.
    Tokens are separated by whitespace, case is kept, and nothing is smoothed. An item with fewer annotations gets blank
    references; these count as references of length 0 in the search for the length closest to the prediction's.
    """

    names = ("dart_bleu",)
    description = "BLEU as DART's evaluation (multi-bleu.perl, three references)"

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        texts = [_bytewise(text) if self.as_written else dart_form(text) for text in predictions]
        blanks = [""] * DART_REFERENCES
        padded = [[dart_form(text) for text in [*given, *blanks][:DART_REFERENCES]] for given in references]
        bleu = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
        score, signature = _corpus_bleu(bleu, texts, padded)
        form = "as-written" if self.as_written else "tokenised-lower-cased"
        self.signatures = {"dart_bleu": f"protocol:dart-multi-bleu|predictions:{form}|{signature}"}
        return {"dart_bleu": score}


def dart_form(text: str) -> str:
    """Return a text in the form of DART's reference files: `Hawaii Five-O's` -> `hawaii five - o ' s`."""
    return " ".join(token.lower() for token in re.findall(r"\w+|[^\w\s]", text))


def _bytewise(text: str) -> str:
    """Join words that are separated only by a Unicode space: the Perl script splits only at ASCII whitespace."""
    return re.sub(r"[^\S \t\n\v\f\r]", "\N{WORD JOINER}", text)
