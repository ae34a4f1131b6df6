"""Torch's random state, as the caller of a public function left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random state of the CPU, and of the GPUs if they are in use, after a block that seeds it.

    A model that is loaded into a script must not decide the script's dropout and order of rows. A seed that was given
    to a GPU alone, before its first use, is replaced by that of the CPU.
    """
    used = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else []):
            yield
    finally:
        if not used:  # the block's seed would become the GPUs' when they are first used, or has already become it
            torch.cuda.manual_seed_all(torch.initial_seed())
