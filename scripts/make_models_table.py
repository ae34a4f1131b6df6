"""Write docs/models.md: which architectures work, found by running every one of the tests' checkpoints."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from architectures import ALL, make_checkpoint, run, table_row  # noqa: E402

HEAD = """# Models

Every architecture below runs through all five stages from a checkpoint as the Hub has it: saved by the class that was pretrained, without a
classifier. The tests make such a checkpoint of each (small, random weights), run it through the command line, load the adapter in plain PEFT,
merge it, compare the scores with float64, and save and load every method. This page is written by `scripts/make_models_table.py` from those
runs, and the tests compare it.

- **Projections** are what `method.target_projections: [query, value]` finds. A model with one matrix for query, key and value has the projection
  `qkv`: its LoRA moves all three at once, and is scored, retained and shared as one. An encoder-decoder keeps its stacks and attentions apart.
  Any other linear module of the blocks can be named by the end of its name (`attention.output.dense`, `gate_proj`), and `all-linear` is all
  of them; head, pooler and experts are left out.
- **Computed** is how training batches are: packed (without padding), or padded, and why. Packing is found by trying, on every model.

| architecture | projections | computed |
|---|---|---|
"""
TAIL = """
An architecture that is not here may work all the same: any model of transformers with linear modules in numbered blocks and a sequence
classifier (or, for texts, a language model). What does not work says so before any work starts:

- a classifier for a model of which transformers has none; texts from an encoder or an encoder-decoder;
- a LoRA on experts of a mixture (they see some of the tokens, and it is not known whose) or on bare parameters (`target_parameters`);
- a checkpoint whose weights are incomplete, do not fit its `config.json` or hold NaN; a tokenizer with more tokens than the model has rows;
- an adapter beside the model in one folder, and weights that are not safetensors.
"""


def main() -> None:
    """Run every architecture and write the page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ALL:
            place = Path(folder) / str(architecture)
            rows.append(table_row(architecture, run(make_checkpoint(place / "backbone", architecture), place / "run")))
    (ROOT / "docs" / "models.md").write_text(HEAD + "\n".join(rows) + "\n" + TAIL, encoding="utf-8")


if __name__ == "__main__":
    main()
