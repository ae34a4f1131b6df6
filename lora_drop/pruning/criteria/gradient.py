"""Connection sensitivity, summed over the pair: the score of SNIP (Lee et al. 2019, arXiv 1810.02340).

    g = Σ over the elements θ of A and B of |θ · ∂L/∂θ|,    L = the loss, mean over examples

To first order, |θ · ∂L/∂θ| is the change of the loss when θ becomes 0. The loss of a text is the sum over its learned
tokens. LoRAs that share a pair each get the pair's score.
"""

from lora_drop.pruning.criteria.base import Criterion, Given, Measured


def measure(given: Given) -> Measured:
    """Return g of each LoRA. Raise UserError if the data have no labels."""
    from lora_drop.pruning.criteria.passes import summed_gradients

    summed = summed_gradients(given)
    found, sums = Measured(examples=summed.examples, tokens=summed.tokens), dict(summed.gradients)
    for name, lora in given.layers.items():
        known = [each for each in lora.tensors if each in sums]
        total = sum(float((each.detach() * sums[each]).abs().sum(dtype=sums[each].dtype)) for each in known)
        found.values[name] = total / max(found.examples, 1)
    return found


CRITERION = Criterion("gradient", "gradient Σ|θ·∂L/∂θ|", measure, version=2)  # 2: right for every decoder
