"""The processes of a run: `torchrun` or `accelerate launch` starts several, one per device.

All processes do the same work in the same order. The first one alone handles everything that exists only once (files,
locks, messages); see `by_first`. A process that was started alone is a launch of one: nothing here has any effect, and
torch.distributed is not imported. The same holds for the first process inside `by_first`, and for every process outside
`together`.
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
"""Environment variables that tell a process its place in the launch."""
LAUNCH = (*PLACE, "LOCAL_WORLD_SIZE", "TORCHELASTIC_")
"""All environment variables of a launcher, by name or prefix."""
ARRIVAL = timedelta(minutes=5)
"""Time that the processes of a launch wait for each other at the start."""
WORK = timedelta(days=2)
"""Time that the others wait while one process works for all. The end of a process is noticed at once."""
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
    """Key-value store that all processes of the launch share, with counters."""


_launch: _Launch | None = None


def size() -> int:
    """Return the number of processes that work together, 1 for a process on its own."""
    return _launch.size if _launch else 1


def rank() -> int:
    """Return the index of this process among them, from 0."""
    return _launch.rank if _launch else 0


def by_first(work: Callable[[], T]) -> T:
    """Run `work` in the first process only, and return its result in every process; the others wait.

    If it fails, all processes end (see `together`).
    """
    global _launch
    launch = _launch
    if launch is None:
        return work()
    import torch
    import torch.distributed as dist

    done: list[Any] = [None]
    if launch.rank == 0:
        _launch = None  # `work` must not wait for the others
        try:
            done = [work()]
        finally:
            _launch = launch
    dist.broadcast_object_list(done, src=0, device=torch.device("cpu"))
    outcome: T = done[0]
    return outcome


def everywhere(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if _launch is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _launch.size
    dist.all_gather_object(found, value)
    return found


def highest(number: int) -> int:
    """Return the highest of the processes' numbers, in a single message, as this is called after every step."""
    if _launch is None:
        return number
    import torch
    import torch.distributed as dist

    given = torch.tensor(number)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return int(given)


def mine(items: Iterable[T]) -> Iterator[T]:
    """Yield this process's share of items that all processes have in the same order (every second one of two)."""
    return islice(items, rank(), None, size())


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: on a machine with several GPUs, each process has its own.

    Raise UserError for a device that several processes cannot share.
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
    """Return True if a launcher started this process as one of several; a leftover WORLD_SIZE alone is not enough."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isdecimal() and int(count) > 1 and all(name in os.environ for name in ("RANK", "MASTER_ADDR"))


def refuse() -> None:
    """Raise UserError for a command that every process of the launch would repeat."""
    raise UserError(
        f"This process was started as one of {os.environ['WORLD_SIZE']} (RANK, WORLD_SIZE and MASTER_ADDR are set). "
        "Only the command `lora-drop run` and its stages (score, train, eval) can use several processes; start any "
        "other command once. If these variables are leftovers, unset WORLD_SIZE."
    )


@contextmanager
def together() -> Iterator[None]:
    """Let the processes of a launch work together while the block runs. A process started alone does nothing here.

    Only the first process writes to the terminal. A failure of any process ends all of them: it is raised in the
    process that failed first, and the others, which lose contact or fail in the same way, end silently.
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
            for number in ENDING:  # the launcher ends all when one has ended; this one must first report why
                signal.signal(number, signal.SIG_IGN)
            raise
        finally:
            _launch = None
    import torch.distributed as dist

    dist.destroy_process_group()


def _joined() -> _Launch:
    """Connect to the other processes. Raise UserError if they do not arrive."""
    missing = [name for name in PLACE if name not in os.environ]
    if missing:
        raise UserError(
            f"This process was started as one of {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set. Start it with "
            "torchrun or accelerate launch; or, if RANK and WORLD_SIZE are leftovers, unset them."
        )
    wrong = [name for name in PLACE if name != "MASTER_ADDR" and not os.environ[name].isdecimal()]
    if wrong:
        raise UserError(
            f"{wrong[0]}={os.environ[wrong[0]]} is not a number. Start the processes with torchrun or accelerate launch; "
            "or, if RANK and WORLD_SIZE are leftovers, unset them."
        )
    import torch
    import torch.distributed as dist

    try:
        store, place, count = next(iter(dist.rendezvous("env://", timeout=ARRIVAL)))
        store.set(f"lora-drop/{place}", "here")
        store.wait([f"lora-drop/{each}" for each in range(count)], ARRIVAL)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process was started as one of {os.environ['WORLD_SIZE']}, but the others did not join within "
            f"{ARRIVAL.seconds // 60} minutes. If RANK and WORLD_SIZE are leftovers, unset them."
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=place, world_size=count, timeout=WORK)
    return _Launch(place, count, int(os.environ["LOCAL_RANK"]), store)


def _refuse_shards() -> None:
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(
                f"{name} splits a model over devices, but here each device computes the whole model: shared LoRAs, "
                "batches without padding, scores and checkpoints need whole tensors. Launch without it "
                "(configs/accelerate/ddp.yaml). If the backbone does not fit on one device, use -o quantization=nf4."
            )


def _speaks(launch: _Launch) -> bool:
    """Return True in the first process that calls this, which then reports the failure."""
    try:
        return bool(launch.store.add("lora-drop/failures", 1) == 1)
    except RuntimeError:  # the process that holds the counter is gone
        return True
