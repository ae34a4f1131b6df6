"""The positions of the real tokens in a padded batch, and the groups of rows that attention computes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lora_drop.data.completions import IGNORED

SIMILAR = 0.8
"""Attention groups rows that have at least this share of the longest row's length."""
FILLER = 128
"""Length of the longest row that is used to fill up a batch."""


class Unpackable(Exception):
    """This model or batch cannot be computed without padding. The message gives the reason."""


@dataclass(frozen=True)
class Places:
    """Index maps between the tokens of a group and `rows heads length`, padded to the longest row."""

    gather: Tensor
    """`rows·heads·length`: the position of each place among `tokens·heads`. Padding points to the row's first token."""
    scatter: Tensor
    """`tokens·heads`: the place of each head of each token."""
    empty: Tensor
    """The places that are padding."""


class Group:
    """Rows of similar length, which attention computes together, padded to the longest of them."""

    def __init__(self, members: Tensor, start: int, lengths: list[int], last: bool):
        """Describe the rows `members` of the batch; their first token is at position `start` of all tokens.

        `last` is True if the head reads the last token of each row, False if the first.
        """
        self.members, self.rows, self.length = members, len(lengths), lengths[0]
        self.tokens = slice(start, start + sum(lengths))
        """Positions of the group's tokens among all tokens."""
        self._lengths = torch.tensor(lengths, device=members.device)
        self._begins = self._lengths.cumsum(0) - self._lengths
        self._real = torch.arange(self.length, device=members.device) < self._lengths[:, None]
        self.read = self._begins + self._lengths - 1 if last else self._begins
        """`rows`: position of the token that is read, counted from the group's first token."""
        self.padded = lengths[-1] < self.length
        self.bias = torch.zeros(self._real.shape, device=members.device).masked_fill_(~self._real, -torch.inf)[
            :, None, None
        ]
        """`rows 1 1 length`: 0 at real keys, -inf at padding."""
        self._places: dict[int, Places] = {}

    def outside(self, window: int, causal: bool, read_only: bool) -> Tensor:
        """Return a mask, `rows 1 queries length`, that is True where a query must not see a key.

        Queries are all tokens, or with `read_only` the token that is read. A token sees itself and those less than
        `window` away; with `causal`, only earlier ones.
        """
        keys = torch.arange(self.length, device=self.members.device)
        queries = (self.read - self._begins)[:, None] if read_only else keys[None]
        ahead = queries[:, None, :, None] - keys
        later = ahead < 0 if causal else ahead <= -window
        return (ahead >= window) | later | ~self._real[:, None, None]

    def places(self, heads: int) -> Places:
        """Return the index maps for `heads` heads, made once for all layers."""
        if heads not in self._places:
            ahead, head = (torch.arange(count, device=self.members.device) for count in (self.length, heads))
            token = self._begins[:, None] + ahead * self._real
            gather = (token[:, None] * heads + head[:, None]).flatten()
            real = self._real[:, None].expand(-1, heads, -1).flatten()
            place = real.nonzero().squeeze(1)
            scatter = torch.empty_like(place)
            scatter[gather[place]] = place
            self._places[heads] = Places(gather, scatter, (~real).nonzero().squeeze(1))
        return self._places[heads]


def filled(tokens: int) -> tuple[int, int]:
    """Return the size that `tokens` are filled up to, and the maximum number of rows for that.

    There are four sizes from one power of 2 to the next, and none closer than 64 tokens.
    """
    step = max(64, 2 ** ((tokens - 1).bit_length() - 3))
    return -(-tokens // step) * step, -(-step // FILLER)


class Layout:
    """The positions of the real tokens in a padded batch. They are ordered by row, longest row first."""

    def __init__(self, mask: Tensor, labels: Tensor | None, reads: str, fills: bool = False):
        """Lay out a batch.

        Args:
            mask: `batch seq`, 1 at real tokens.
            labels: `batch seq` with IGNORED where nothing is learned; needed for `reads="learned"`.
            reads: The tokens that are read after the stack: "all", the "first" or the "last" of each row, or the
                "learned" ones: those that precede a label.
            fills: Add rows that are never read, so that batches have one of a few numbers of tokens.
        """
        device, self.shape = mask.device, tuple(mask.shape)
        mask = mask.cpu()  # wait for the GPU once here, instead of in each step below
        lengths = mask.sum(1).tolist()
        if min(lengths) == 0:
            raise Unpackable("a row has no tokens")
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        ordered = torch.tensor(order)
        row, column = mask[ordered].nonzero(as_tuple=True)
        flat = ordered[row] * mask.shape[1] + column
        self._ordered = ordered.to(device)
        self.columns = column.to(device)
        """`tokens`: column of each token in the batch, 0 for those that fill it up."""
        self.flat = flat.to(device)
        """`tokens`: position of each token in the flattened batch."""
        self.lengths = [lengths[index] for index in order]
        self.starts = [0, *np.cumsum(self.lengths).tolist()]
        """Start of each row among all tokens, and the end of the last."""
        self.longest = self.lengths[0]
        """Upper bound on the tokens of a row."""
        self.taken, ends = self.flat, self.starts
        """`tokens`: position of each token in the flattened batch, including those that fill it up."""
        if fills:
            self.longest = -(-self.longest // FILLER) * FILLER
            total, rows = filled(ends[-1])
            ends = ends + [min(ends[-1] + FILLER * (row + 1), total) for row in range(rows)]
            self.taken = torch.cat([flat, flat[:1].expand(total - len(flat))]).to(device)
            self.columns = torch.cat([column, column.new_zeros(total - len(column))]).to(device)
        self.reads, self.fills = reads, fills
        if reads == "learned":
            assert labels is not None
            # in the order of the batch, which is also the order of the labels
            index = torch.empty(self.shape, dtype=torch.long)
            index.view(-1)[flat] = torch.arange(len(flat))
            self.read = index[:, :-1][labels[:, 1:].cpu() != IGNORED].to(device)
        elif self.one_each:
            places = self.starts[:-1] if reads == "first" else [end - 1 for end in self.starts[1:]]
            read = torch.empty(len(order), dtype=torch.long)
            read[ordered] = torch.tensor(places)
            self.read = read.to(device)
        self.offsets = torch.tensor(ends, dtype=torch.int32).to(device)
        """Start of each row and the end of the last, including those that fill up the batch."""

    def restore(self, hidden: Tensor) -> Tensor:
        """Put the tokens that are read where the caller expects them.

        Args:
            hidden: `1 tokens width`, of all tokens if `reads` is "all", else of those that are read.

        Returns:
            `batch seq width`, zero at padding. If one token of each row is read, it is repeated at every position of
            its row, so that the head finds it wherever it looks. For learned tokens `1 learned width`, because the
            others need no position.
        """
        rows, length = self.shape
        if self.reads == "all":
            padded = hidden.new_zeros(rows * length, hidden.shape[-1])
            return padded.index_copy(0, self.flat, hidden[0, : len(self.flat)]).view(rows, length, -1)
        return hidden if self.reads == "learned" else hidden[0].unsqueeze(1).expand(-1, length, -1)

    @cached_property
    def groups(self) -> list[Group]:
        """Groups of rows that attention computes together, if it works by group."""
        return list(self._grouped())

    @property
    def one_each(self) -> bool:
        """True if one token of each row is read."""
        return self.reads in ("first", "last")

    @property
    def right_padded(self) -> bool:
        """True if no padding comes before a token of its row."""
        ends = torch.tensor(self.starts[1:], device=self.columns.device) - 1
        return self.columns[ends].tolist() == [length - 1 for length in self.lengths]

    @property
    def tokens(self) -> int:
        """Number of tokens that are computed."""
        return len(self.taken)

    def _grouped(self) -> Iterator[Group]:
        first = 0
        for row in range(1, len(self.lengths) + 1):
            if row == len(self.lengths) or self.lengths[row] < SIMILAR * self.lengths[first]:
                yield Group(self._ordered[first:row], self.starts[first], self.lengths[first:row], self.reads == "last")
                first = row
