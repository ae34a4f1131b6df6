"""Torch's random state, as the caller of a public function left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random state of the CPU, and of the GPU in use, after a block that seeds it.

    A model that is loaded into a script must not decide the script's dropout and order of rows.
    """
    used = torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        yield
    if not used:  # the block's seed would become the GPU's when it is first used, or has already become it
        torch.cuda.manual_seed_all(torch.initial_seed())
