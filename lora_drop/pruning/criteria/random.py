"""Random scores: the baseline that every other criterion has to beat.

g = uniform in [0, 1), from the seed and the name of the module
"""

from random import Random

from lora_drop.pruning.criteria.base import Criterion, Given, Measured


def measure(given: Given) -> Measured:
    """Return g of each LoRA; the same seed gives the same numbers."""
    return Measured({name: Random(f"{given.seed}/{name}").random() for name in given.layers})


CRITERION = Criterion("random", "random", measure, reads=False)
