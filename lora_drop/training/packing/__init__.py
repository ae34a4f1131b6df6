"""The fast path: the same forward and backward pass without padding, on the model as it is.

For one batch, `Packing.over(batch)` is a context in which the model, called as always, computes less:

- **No padding.** Before the stack of layers the real tokens of all rows are joined into one row (`1 tokens width`), after it they are put back
  where they were; everything outside the stack, and the caller, sees ordinary padded tensors. In between, attention runs per group
  of rows of similar length, plugged in through transformers' `AttentionInterface`, or by calling the model's own code per group
  (`own_attention.py`); every other operation works on single tokens anyway.
- **Nothing that is not read.** Where the head reads one token of each row (a classifier), or the loss only the learned ones (a language model), the
  last layer goes on with these rows alone once its attention is done.
- **Cheap dropout.** On a CPU torch draws masks with a slow serial generator. Ours compares bytes of SFC64, which is seeded from torch's
  own generator for each mask, so that seeds, checkpoints and recomputation work as before.
- **LoRA without passes over memory.** B (A x) is added to W x in place by the product itself.
- **On a GPU** attention takes all rows in one kernel, and in training the layers are replayed from a recording (`replay.py`), since Python
  takes longer to start their kernels than the GPU takes to compute them.

No model is known by name. `prepare` compares loss and gradients of the two ways on a few rows and says which parts can be used; a model
for which any number differs is computed the stock way, and the reason is kept.
"""

from lora_drop.training.packing.layout import Layout, Unpackable
from lora_drop.training.packing.packed import Packing
from lora_drop.training.packing.prepare import prepare

__all__ = ["Layout", "Packing", "Unpackable", "prepare"]
