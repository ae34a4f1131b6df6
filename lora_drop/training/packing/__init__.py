"""The fast path: the same forward and backward pass without padding, on an unmodified model.

For one batch, `Packing.over(batch)` is a context in which the model is called as usual but computes less:

- **No padding.** Before the stack of layers, the real tokens of all rows are joined into one row (`1 tokens width`);
  after it, they are put back in place. Everything outside the stack, and the caller, sees ordinary padded tensors.
  Attention runs per group of rows of similar length. It is plugged in through transformers' `AttentionInterface`, or
  the model's own code is called per group (`own_attention.py`). Every other operation works on single tokens anyway.
- **No unused tokens.** If the head reads one token of each row (a classifier), or the loss only the learned ones (a
  language model), the last layer computes only these tokens after its attention.
- **Cheap dropout.** On a CPU, torch draws masks with a slow serial generator. Here, bytes of SFC64 are compared with a
  threshold. SFC64 is seeded from torch's own generator for each mask, so that seeds, checkpoints and recomputation
  still work.
- **LoRA without extra passes over memory.** The product itself adds B (A x) to W x in place.
- **On a GPU**, one kernel computes the attention of all rows. In training, the layers are replayed from a recording
  (`replay.py`), because Python takes longer to start their kernels than the GPU takes to compute them.

No model is known by name. `prepare` compares loss and gradients of the fast and the stock way on a few rows, and
decides which parts can be used. If any number differs, the model is computed the stock way, and the reason is kept.
"""

from lora_drop.training.packing.layout import Layout, Unpackable
from lora_drop.training.packing.packed import Packing
from lora_drop.training.packing.prepare import prepare

__all__ = ["Layout", "Packing", "Unpackable", "prepare"]
