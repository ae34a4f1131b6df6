"""Write docs/models.md, the table of working architectures, by running each of the tests' checkpoints."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from architectures import ALL, make_checkpoint, run, table_row  # noqa: E402

HEAD = """# Models

Every architecture below runs through all five stages from a checkpoint in the form that the Hub has: saved by the class
that was pretrained, without a classifier. The tests make a small checkpoint of each with random weights, run it through
the command line, load the adapter in plain PEFT, merge it, compare the scores with float64, and save and load every
method. `scripts/make_models_table.py` writes this page from those runs, and the tests compare it.

- **Projections** lists the projections that `method.target_projections: [query, value]` finds. A model with a single
  matrix for query, key and value has the projection `qkv`: its LoRA moves all three at once, and is scored, retained
  and shared as one. An encoder-decoder keeps its stacks and attentions apart. Any other linear module of the blocks can
  be given by the end of its name (`attention.output.dense`, `gate_proj`), and `all-linear` means all of them, except
  the head, the pooler and experts.
- **Computed** says whether training batches are packed (without padding), or padded and why. A trial on each model
  decides.

| architecture | projections | computed |
|---|---|---|
"""
TAIL = """
Other architectures may work, too: any transformers model with linear modules in numbered blocks and a sequence
classifier (or, for writing texts, a language model). These cases are refused before any work starts:

- a classifier on a model for which transformers has none; writing texts with an encoder or an encoder-decoder;
- a LoRA on the experts of a mixture (an expert sees only some tokens, and it is not known from which rows) or on bare
  parameters (`target_parameters`);
- a checkpoint with weights that are incomplete, do not fit its `config.json` or hold NaN; a tokenizer with more tokens
  than the embedding has rows;
- an adapter in the same folder as the model, and weights that are not safetensors.
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
