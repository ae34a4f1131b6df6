"""Environment variables that make libraries compute something else. A run ignores them: its configuration decides.

Launchers (`accelerate launch`, torchrun, mpirun) set such variables, and shells, notebooks and job scripts keep them.
They silently change precision, device, accumulation or sharding. Variables that only affect speed, logging or
locations are left alone (`OMP_NUM_THREADS`, `CUDA_VISIBLE_DEVICES`, `HF_*`, `WANDB_*`); `run.json` records threads and
device. Two variables of this harmless kind are set here, because they decide how much memory training takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_drop import processes
from lora_drop.progress import SILENT, Reporter

PREFIXES = (
    "ACCELERATE_",
    "DEEPSPEED_",
    "FSDP_",
    "MEGATRON_LM_",
    "MPI_LOCAL",
    "MV2_COMM_WORLD_",
    "OMPI_COMM_WORLD_",
    "PARALLELISM_CONFIG_",
    "PMI_",
    "TORCHELASTIC_",
)
TF32 = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
NAMES = (
    *(*processes.PLACE, "LOCAL_WORLD_SIZE", "FORK_LAUNCHED"),
    *("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", TF32),
    *("TRANSFORMERS_SDPA_FORCE_GQA", "XLA_DOWNCAST_BF16", "XLA_USE_BF16"),
)
CACHED_SHAPES = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Number of compiled products, one per shape, that torch and oneDNN cache.

A step usually needs fewer, because its layers share shapes.
"""


def keep_few_shapes() -> None:
    """Drop compiled products of earlier batches. Call it before the first product: the variables are read only then.

    Each batch has a different number of tokens, so its shapes rarely recur. By default torch would cache 1,024 products
    of each kind, and oneDNN the same number, at half a megabyte each: a base-size encoder grew to 7 GB in a thousand
    steps. Values that the user has set are kept.
    """
    for name, count in CACHED_SHAPES.items():
        os.environ.setdefault(name, count)


@contextmanager
def neutral_environment(report: Reporter = SILENT) -> Iterator[None]:
    """Remove the variables that would change the computation while the block runs, and name them in a notice.

    Raises UserError if this process was launched as one of several but works alone (see `processes.together`).
    """
    if processes.launched() and processes.size() == 1:
        processes.refuse()
    kept = processes.LAUNCH if processes.size() > 1 else ()  # the Trainer learns from these that there are several
    removed = {
        name: value
        for name, value in os.environ.items()
        if (name in NAMES or name.startswith(PREFIXES)) and not name.startswith(kept)
    }
    if removed:
        names = f"environment variable{'s' * (len(removed) > 1)} {', '.join(sorted(removed))}"
        report.notice(f"ignored: {names}; the configuration alone decides what is computed")
    for name in removed:
        del os.environ[name]
    torch: Any = sys.modules.get("torch")
    products = torch.get_float32_matmul_precision() if torch is not None and TF32 in removed else None
    try:
        if products:  # torch read the variable when it was imported
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if products:
            torch.set_float32_matmul_precision(products)
        os.environ.update(removed)
