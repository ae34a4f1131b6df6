"""The paper's criterion (arXiv 2402.07721, eq. 3): how strongly the output of a LoRA moves the frozen model.

    g = mean over examples of Σ over tokens of ‖ΔW x‖²,    ΔW = scaling · B A

It is computed in rank space, from r numbers per token (see `pruning.importance`).
"""

from lora_drop.pruning.criteria.base import PAPER, Criterion, Given, Measured


def measure(given: Given) -> Measured:
    """Return g of each LoRA."""
    from lora_drop.pruning.importance import collect_moments, contracted

    moments = collect_moments(given)
    return Measured(contracted(moments, given.layers), moments.examples, moments.tokens, moments.norms)


CRITERION = Criterion(PAPER, "output ‖ΔWx‖²", measure, additive=True)
