"""The processes of one run: `torchrun` or `accelerate launch` starts several, one for each device.

All of them do the same, in the same order. What exists once (files, locks, messages) is the first one's: see `by_first`.
A process that was started alone is a launch of one, for which nothing here does anything, and torch.distributed is not
imported. So is the first process while it works for all inside `by_first`, and each one outside `together`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_drop.errors import UserError
from lora_drop.interruption import ENDING

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables by which a launcher tells a process its place."""
LAUNCH = (*PLACE, "LOCAL_WORLD_SIZE", "TORCHELASTIC_")
"""All of them, or how they begin."""
ARRIVAL = timedelta(minutes=5)
"""So long the processes of a launch wait for each other when they start."""
WORK = timedelta(days=2)
"""So long they wait while one of them works for all. The end of a process is noticed at once."""
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


@dataclass(frozen=True)
class _Launch:
    rank: int
    size: int
    local_rank: int
    store: Any
    """Known to all processes of the launch, and counts for them."""


_launch: _Launch | None = None


def size() -> int:
    """Return the number of processes that work together: 1 for a process on its own."""
    return _launch.size if _launch else 1


def rank() -> int:
    """Return the place of this process among them, from 0."""
    return _launch.rank if _launch else 0


def by_first(work: Callable[[], T]) -> T:
    """Return in every process what `work` returns in the first, the only one that does it; the others wait.

    If it fails there, all processes end (see `together`).
    """
    global _launch
    launch = _launch
    if launch is None:
        return work()
    import torch
    import torch.distributed as dist

    done: list[Any] = [None]
    if launch.rank == 0:
        _launch = None  # nothing in there can wait for the others
        try:
            done = [work()]
        finally:
            _launch = launch
    dist.broadcast_object_list(done, src=0, device=torch.device("cpu"))
    outcome: T = done[0]
    return outcome


def everywhere(value: T) -> list[T]:
    """Return the values that all processes have given, in their order."""
    if _launch is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _launch.size
    dist.all_gather_object(found, value)
    return found


def highest(number: int) -> int:
    """Return the highest of the numbers that the processes have given. (Asked after every step, so it is one message.)"""
    if _launch is None:
        return number
    import torch
    import torch.distributed as dist

    given = torch.tensor(number)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return int(given)


def mine(items: Iterable[T]) -> Iterator[T]:
    """Yield this process's share of items that all processes have in the same order: with two, every second one."""
    return islice(items, rank(), None, size())


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: on a machine with several GPUs, each process has its own.

    Raises UserError for a device that several processes cannot use.
    """
    if _launch is None or device.type == "cpu":
        return device
    import torch

    if device.type != "cuda" or device.index is not None:
        raise UserError(f"Several processes cannot share the device {device}. Use --device auto, or --device cpu.")
    if _launch.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"There is no GPU for process {_launch.local_rank + 1} of this machine, which has {torch.cuda.device_count()}: "
            "start as many processes as there are GPUs."
        )
    own = torch.device("cuda", _launch.local_rank)
    torch.cuda.set_device(own)
    return own


def launched() -> bool:
    """Return True if a launcher started this process as one of several; a leftover WORLD_SIZE alone does not say so."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isdecimal() and int(count) > 1 and all(name in os.environ for name in ("RANK", "MASTER_ADDR"))


def refuse() -> None:
    """Raise UserError: what is asked for would be done by each process once more."""
    raise UserError(
        f"This process was started as one of {os.environ['WORLD_SIZE']} (RANK, WORLD_SIZE and MASTER_ADDR are set). Several "
        "processes are for the command `lora-drop run` and its stages (score, train, eval); start everything else once. "
        "If these variables are leftovers, unset WORLD_SIZE."
    )


@contextmanager
def together() -> Iterator[None]:
    """Let the processes of a launch work together while the block runs; one that was started alone does nothing here.

    The first process alone writes to the terminal. A failure of any process ends all: it is raised in the process that
    failed first, and the others, which miss that one or fail in the same way, end without a word.
    """
    global _launch
    if not launched():
        yield
        return
    with ExitStack() as silence:
        joined = _joined()
        if joined.rank > 0:
            nowhere = silence.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        _launch = joined
        try:
            _refuse_shards()
            yield
        except Exception as error:
            silence.close()
            if not _speaks(joined):
                raise SystemExit(2 if isinstance(error, UserError) else 1) from None
            for number in ENDING:  # the launcher ends all when the first one has: not before this one has said why
                signal.signal(number, signal.SIG_IGN)
            raise
        finally:
            _launch = None
    import torch.distributed as dist

    dist.destroy_process_group()


def _joined() -> _Launch:
    """Meet the other processes. Raises UserError if they do not come."""
    missing = [name for name in PLACE if name not in os.environ]
    if missing:
        raise UserError(
            f"This process was started as one of {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set. Start it with "
            "torchrun or accelerate launch; or, if RANK and WORLD_SIZE are leftovers, unset them."
        )
    import torch
    import torch.distributed as dist

    try:
        store, place, count = next(iter(dist.rendezvous("env://", timeout=ARRIVAL)))
        store.set(f"lora-drop/{place}", "here")
        store.wait([f"lora-drop/{each}" for each in range(count)], ARRIVAL)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process was started as one of {os.environ['WORLD_SIZE']}, and the others were not there after "
            f"{ARRIVAL.seconds // 60} minutes. If RANK and WORLD_SIZE are leftovers, unset them."
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=place, world_size=count, timeout=WORK)
    return _Launch(place, count, int(os.environ["LOCAL_RANK"]), store)


def _refuse_shards() -> None:
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(
                f"{name} splits a model over devices, and here each device computes the whole of it: LoRAs that layers share, "
                "batches without padding, scores and checkpoints need whole tensors. Launch without it "
                "(configs/accelerate/ddp.yaml). A backbone that does not fit on one device: -o quantization=nf4."
            )


def _speaks(launch: _Launch) -> bool:
    """Return True in the first process that asks, which is the one to say what has failed."""
    try:
        return bool(launch.store.add("lora-drop/failures", 1) == 1)
    except RuntimeError:  # the process that counted is gone
        return True
