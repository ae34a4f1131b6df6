"""Part `generation`: what it gains to generate for prompts of similar length together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from datasets import Dataset

from bench.rounds import interleave, timed
from bench.statistics import ratios, spread
from bench.workload import Subject
from lora_drop.data.completions import end_of_text
from lora_drop.evaluation.generator import generate

ROUNDS = 3
"""At most: generation is slow."""
BATCHES = 4


def measure_generation(subject: Subject) -> dict[str, Any]:
    """Measure `generate` on evaluation rows as it orders them, the longest first, and batch by batch in the file's order."""
    prompts = subject.data.eval_encoded
    model = subject.lora()
    at_a_time = max(1, len(prompts) // BATCHES)
    tokens: dict[str, int] = {}

    def writing(name: str, parts: list[Dataset]) -> Callable[[], Callable[[], object]]:
        def work() -> None:
            with _counted(model, end_of_text(subject.tokenizer)) as counts:
                for part in parts:
                    generate(model, part, subject.tokenizer, subject.config.generation, at_a_time)
            tokens[name] = sum(counts)

        return lambda: work

    starts = range(0, len(prompts), at_a_time)
    in_order = [prompts.select(range(start, min(start + at_a_time, len(prompts)))) for start in starts]
    actions = {
        "file order": timed(writing("file order", in_order), subject.device),
        "ordered": timed(writing("ordered", [prompts]), subject.device),
    }
    count = min(subject.settings.rounds, ROUNDS)
    total = len(actions) * (count + 1)
    rounds = interleave(actions, count, lambda done: subject.report.advance(done, total))
    rates = {name: _rates(rounds.seconds(name), tokens[name], len(prompts)) for name in actions}
    return {
        "prompts": len(prompts),
        "batch_size": at_a_time,
        "generated_tokens": tokens,
        **rates,
        "ratio": asdict(ratios(rounds.seconds("file order"), rounds.seconds("ordered"))),
        "rounds": rounds.to_json(),
    }


def _rates(seconds: list[float], tokens: int, prompts: int) -> dict[str, Any]:
    return {
        "tokens_per_second": asdict(spread([tokens / value for value in seconds])),
        "prompts_per_second": asdict(spread([prompts / value for value in seconds])),
    }


@contextmanager
def _counted(model: Any, end: int) -> Iterator[list[int]]:
    """Yield a list that gets the number of tokens that each call of `model.generate` writes, up to the end of each text."""
    counts: list[int] = []
    plain = model.generate

    def counting(**options: Any) -> Any:
        outputs = plain(**options)
        written = outputs[:, options["input_ids"].shape[1] :]
        # the first end of a text is written, too; what follows it is padding
        counts.append(int(((written == end).cumsum(dim=1) - (written == end).long() == 0).sum()))
        return outputs

    model.generate = counting
    try:
        yield counts
    finally:
        del model.generate
