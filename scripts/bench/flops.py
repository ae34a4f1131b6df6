"""How many floating-point operations one pass of LoRA training over given rows needs, from the shapes alone.

A product of an m × k and a k × n matrix is 2·m·n·k operations. Counted are the linear modules, the two products of attention and the pairs
of LoRA on query and value, for the real tokens only: padding is no work. The backward pass costs

- for a frozen module only the gradient of its input, dX = dY·W, which is as much as the forward pass again;
- for a trained one (LoRA, the head) also the gradient of its weight;
- for attention two products for each of the forward pass;
- nothing for the input of the first layer, since the embeddings are frozen: no dX of its query, key and value, and no gradient of its
  keys, behind which nothing is trained.

Element-wise work (softmax, GELU, normalisation, dropout), embeddings and rotary positions are not counted, nor is what an implementation
computes twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
"""Decoders whose blocks are Llama's: three matrices in the MLP, and key/value heads that several query heads share."""
ENCODERS = {"bert", "roberta", "xlm-roberta", "camembert"}
BACKWARD = 2
"""Products of attention in the backward pass for each of the forward pass."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide how much it computes."""

    layers: int
    hidden: int
    attention: int
    """Heads times their size: the width of the queries."""
    key_value: int
    """Width of the keys, and of the values."""
    intermediate: int
    matrices: int
    """In the MLP: 2, or 3 if it is gated."""
    causal: bool
    outputs: int
    """Labels of a classifier, or the vocabulary of a generator."""
    generator: bool
    pooler: str = ""
    """What is between an encoder and its classifier: a "frozen" (BERT) or a "trained" matrix (RoBERTa); a decoder has none."""


@dataclass(frozen=True)
class Rows:
    """The tokens of the rows that are trained on."""

    lengths: Sequence[int]
    """Real tokens of each row."""
    learned: Sequence[int] | None = None
    """How many tokens at the end of each row a generator learns; None for a classifier, which reads one token of each row."""


@dataclass(frozen=True)
class Flops:
    """Operations of one training pass over the rows, forward and backward."""

    full: int
    """The whole model on all real tokens: what is usually called model FLOPs."""
    needed: int
    """Without what nobody reads: rows of the last layer that the head does not read, and what a causal mask hides."""


def shape_of(config: Any, generator: bool) -> Shape | None:
    """Read the sizes from a transformers configuration; None for an architecture whose blocks are not known here."""
    kind = config.model_type
    if kind not in GATED | ENCODERS:
        return None
    decoder = kind in GATED
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        attention=heads * size,
        key_value=(config.num_key_value_heads if decoder else heads) * size,
        intermediate=config.intermediate_size,
        matrices=3 if decoder else 2,
        causal=decoder,
        outputs=config.vocab_size if generator else config.num_labels,
        generator=generator,
        pooler="" if decoder else "frozen" if kind == "bert" else "trained",
    )


def training_flops(shape: Shape, rows: Rows, rank: int) -> Flops:
    """Count one pass of LoRA training (rank `rank` on query and value, the head trained too) over the rows."""
    return Flops(*(_forward(shape, rows, rank, lean) + _backward(shape, rows, rank, lean) for lean in (False, True)))


def forward_flops(shape: Shape, rows: Rows, rank: int) -> Flops:
    """Count the forward pass alone."""
    return Flops(*(_forward(shape, rows, rank, lean) for lean in (False, True)))


@dataclass(frozen=True)
class _Tokens:
    """What one layer, or the head, works on."""

    inputs: int
    """Tokens that have keys and values."""
    outputs: int
    """Tokens that have a query, and an output that somebody reads."""
    pairs: int
    """Pairs of a query and a key."""


def _forward(shape: Shape, rows: Rows, rank: int, lean: bool) -> int:
    layers = sum(_layer_forward(shape, _tokens(shape, rows, layer, lean), rank) for layer in range(shape.layers))
    return layers + sum(size for size, _ in _head(shape, rows, lean))


def _backward(shape: Shape, rows: Rows, rank: int, lean: bool) -> int:
    tokens = [_tokens(shape, rows, layer, lean) for layer in range(shape.layers)]
    layers = sum(_layer_backward(shape, seen, rank, first=layer == 0) for layer, seen in enumerate(tokens))
    return layers + sum(size * (2 if trained else 1) for size, trained in _head(shape, rows, lean))


def _layer_forward(shape: Shape, tokens: _Tokens, rank: int) -> int:
    query = 2 * tokens.outputs * shape.hidden * shape.attention
    key = value = 2 * tokens.inputs * shape.hidden * shape.key_value
    lora = 2 * rank * tokens.outputs * (shape.hidden + shape.attention)
    lora += 2 * rank * tokens.inputs * (shape.hidden + shape.key_value)
    return query + key + value + lora + _attention(shape, tokens) + _after_attention(shape, tokens)


def _layer_backward(shape: Shape, tokens: _Tokens, rank: int, first: bool) -> int:
    query_width, value_width = tokens.outputs * shape.attention, tokens.inputs * shape.key_value
    inputs = (tokens.outputs + tokens.inputs) * shape.hidden
    lora = 2 * rank * (2 * (query_width + value_width) + inputs)  # dB and dz; dA
    whole = lora + BACKWARD * _attention(shape, tokens) + _after_attention(shape, tokens)
    if first:
        return whole - _attention(shape, tokens) // 2  # nothing is trained behind the keys
    frozen = 2 * shape.hidden * (query_width + 2 * value_width)
    return whole + frozen + 2 * rank * inputs


def _attention(shape: Shape, tokens: _Tokens) -> int:
    """Queries times keys, and weights times values."""
    return 2 * 2 * tokens.pairs * shape.attention


def _after_attention(shape: Shape, tokens: _Tokens) -> int:
    """The output projection and the MLP."""
    return 2 * tokens.outputs * shape.hidden * (shape.attention + shape.matrices * shape.intermediate)


def _head(shape: Shape, rows: Rows, lean: bool) -> list[tuple[int, bool]]:
    """Return the matrices of the head as (operations of the forward pass, whether the matrix is trained)."""
    tokens = _read(rows) if lean or shape.pooler else sum(rows.lengths)  # a decoder's head is put on every token
    classifier = (2 * tokens * shape.hidden * shape.outputs, not shape.generator)
    pooler = [(2 * tokens * shape.hidden**2, shape.pooler == "trained")] if shape.pooler else []
    return [*pooler, classifier]


def _tokens(shape: Shape, rows: Rows, layer: int, lean: bool) -> _Tokens:
    total = sum(rows.lengths)
    if not lean:
        return _Tokens(total, total, sum(length**2 for length in rows.lengths))
    if layer == shape.layers - 1:
        return _Tokens(total, _read(rows), _read_pairs(shape, rows))
    pairs = sum(length * (length + 1) // 2 if shape.causal else length**2 for length in rows.lengths)
    return _Tokens(total, total, pairs)


def _read(rows: Rows) -> int:
    """Tokens whose output the head reads."""
    return len(rows.lengths) if rows.learned is None else sum(rows.learned)


def _read_pairs(shape: Shape, rows: Rows) -> int:
    """Keys seen by the tokens that the head reads: by a classifier's one token all; each learned token is predicted from the one before it."""
    if rows.learned is None:
        return sum(rows.lengths)
    return sum(
        (2 * length - learned - 1) * learned // 2 for length, learned in zip(rows.lengths, rows.learned, strict=True)
    )
