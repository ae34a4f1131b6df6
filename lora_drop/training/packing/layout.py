"""Where the real tokens of a padded batch are, and which rows attention computes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lora_drop.data.completions import IGNORED

SIMILAR = 0.8
"""Rows whose length is at least this share of the longest one's are one group of the attention."""
FILLER = 128
"""The longest row that a batch is filled up with."""


class Unpackable(Exception):
    """This model or batch cannot be computed without padding; the message says why."""


@dataclass(frozen=True)
class Places:
    """Where each head of each token of a group stands in `rows heads length`, padded to the longest row, and back."""

    gather: Tensor
    """`rows·heads·length`: of each place, the position among `tokens·heads`; that of the row's first token where there is padding."""
    scatter: Tensor
    """`tokens·heads`: of each head of each token, its place."""
    empty: Tensor
    """The places that are padding."""


class Group:
    """Rows of similar length, which attention computes together, padded to the longest of them."""

    def __init__(self, members: Tensor, start: int, lengths: list[int], last: bool):
        """Describe rows (`members` of the batch) whose first token is at `start` of all tokens.

        `last`: whether the head reads their last token, not their first.
        """
        self.members, self.rows, self.length = members, len(lengths), lengths[0]
        self.tokens = slice(start, start + sum(lengths))
        """Where their tokens are among all tokens."""
        self._lengths = torch.tensor(lengths, device=members.device)
        self._begins = self._lengths.cumsum(0) - self._lengths
        self._real = torch.arange(self.length, device=members.device) < self._lengths[:, None]
        self.read = self._begins + self._lengths - 1 if last else self._begins
        """`rows`: position, from the group's first token, of the token that is read."""
        self.padded = lengths[-1] < self.length
        self.bias = torch.zeros(self._real.shape, device=members.device).masked_fill_(~self._real, -torch.inf)[
            :, None, None
        ]
        """`rows 1 1 length`: 0 at real keys, -inf at padding."""
        self._places: dict[int, Places] = {}

    def outside(self, window: int, causal: bool, read_only: bool) -> Tensor:
        """Return True at what a query does not see, `rows 1 queries length`: of each token, or of the one that is read.

        A token sees itself and those less than `window` away, of earlier ones alone if `causal`.
        """
        keys = torch.arange(self.length, device=self.members.device)
        queries = (self.read - self._begins)[:, None] if read_only else keys[None]
        ahead = queries[:, None, :, None] - keys
        later = ahead < 0 if causal else ahead <= -window
        return (ahead >= window) | later | ~self._real[:, None, None]

    def places(self, heads: int) -> Places:
        """Return where everything of `heads` heads stands; made once for all layers."""
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
    """Return to how many tokens so many are filled up, and by how many rows at most: there are four sizes from a power of 2 to the next."""
    step = max(64, 2 ** ((tokens - 1).bit_length() - 3))
    return -(-tokens // step) * step, -(-step // FILLER)


class Layout:
    """Where the real tokens of a padded batch are. They are ordered by row, longest row first."""

    def __init__(self, mask: Tensor, labels: Tensor | None, reads: str, fills: bool = False):
        """Lay out a batch.

        Args:
            mask: `batch seq`, 1 at real tokens.
            labels: `batch seq` with IGNORED where nothing is learned, for `reads="learned"`.
            reads: which tokens are read after the stack: "all", the "first" or "last" of each row, or those whose next token is "learned".
            fills: further rows, which nobody reads, make the tokens one of a few numbers.
        """
        device, self.shape = mask.device, tuple(mask.shape)
        mask = mask.cpu()  # a GPU is waited for here, so that it is not in each of the steps below
        lengths = mask.sum(1).tolist()
        if min(lengths) == 0:
            raise Unpackable("a row has no tokens")
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        ordered = torch.tensor(order)
        row, column = mask[ordered].nonzero(as_tuple=True)
        flat = ordered[row] * mask.shape[1] + column
        self._ordered = ordered.to(device)
        self.columns = column.to(device)
        """`tokens`: the column of each token in the batch."""
        self.flat = flat.to(device)
        """`tokens`: the position of each in the flattened batch."""
        self.lengths = [lengths[index] for index in order]
        self.starts = [0, *np.cumsum(self.lengths).tolist()]
        """Where each row begins among all tokens, and where the last one ends."""
        self.longest = self.lengths[0]
        """No row has more tokens."""
        self.taken, ends = self.flat, self.starts
        """`tokens`: the position of each in the flattened batch, those included that fill it up."""
        if fills:
            self.longest = -(-self.longest // FILLER) * FILLER
            total, rows = filled(ends[-1])
            ends = ends + [min(ends[-1] + FILLER * (row + 1), total) for row in range(rows)]
            self.taken = torch.cat([flat, flat[:1].expand(total - len(flat))]).to(device)
        self.reads, self.fills = reads, fills
        if reads == "learned":
            assert labels is not None
            # in the order of the batch, which is that of the labels
            index = torch.empty(self.shape, dtype=torch.long)
            index.view(-1)[flat] = torch.arange(len(flat))
            self.read = index[:, :-1][labels[:, 1:].cpu() != IGNORED].to(device)
        elif self.one_each:
            places = self.starts[:-1] if reads == "first" else [end - 1 for end in self.starts[1:]]
            read = torch.empty(len(order), dtype=torch.long)
            read[ordered] = torch.tensor(places)
            self.read = read.to(device)
        self.offsets = torch.tensor(ends, dtype=torch.int32).to(device)
        """Where each row begins, and where the last one ends, those included that fill the batch up."""

    def restore(self, hidden: Tensor) -> Tensor:
        """Put the tokens that are read back where the caller looks for them.

        Args:
            hidden: `1 tokens width` of all tokens, or of those that are read.

        Returns:
            `batch seq width`, zero at padding; where one token is read it stands at every position of its row, so that it is found wherever the
            head looks. Of learned tokens `1 learned width`, as nobody needs a place for the others.
        """
        rows, length = self.shape
        if self.reads == "all":
            padded = hidden.new_zeros(rows * length, hidden.shape[-1])
            return padded.index_copy(0, self.flat, hidden[0, : len(self.flat)]).view(rows, length, -1)
        return hidden if self.reads == "learned" else hidden[0].unsqueeze(1).expand(-1, length, -1)

    @cached_property
    def groups(self) -> list[Group]:
        """Rows that attention computes together, where it computes groups."""
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
        """Tokens that are computed."""
        return len(self.taken)

    def _grouped(self) -> Iterator[Group]:
        first = 0
        for row in range(1, len(self.lengths) + 1):
            if row == len(self.lengths) or self.lengths[row] < SIMILAR * self.lengths[first]:
                yield Group(self._ordered[first:row], self.starts[first], self.lengths[first:row], self.reads == "last")
                first = row
