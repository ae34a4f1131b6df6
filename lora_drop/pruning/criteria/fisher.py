"""Fisher pruning, summed over the pair (Theis et al. 2018, arXiv 1801.05787, eq. 5, without its constant ½).

    g = Σ over the elements θ of A and B of θ² · F(θ),    F(θ) = mean over examples n of (∂Lₙ/∂θ)²

To second order, with the diagonal of the empirical Fisher matrix in place of the Hessian, setting the pair to 0 raises
the loss by ½ g. Each example needs its own gradient, so rows run one at a time. LoRAs that share a pair each get the
pair's score.
"""

from lora_drop.pruning.criteria.base import Criterion, Given, Measured


def measure(given: Given) -> Measured:
    """Return g of each LoRA. Raise UserError if the data have no labels."""
    from lora_drop.pruning.criteria.passes import gradients

    norms: dict[str, list[float]] = {name: [] for name in given.layers}
    found = Measured()
    for row in gradients(given, one_by_one=True):
        squares = {each: float((each.detach() * gradient).double().square().sum()) for each, gradient in row.gradients}
        for name, lora in given.layers.items():
            norms[name].append(sum(squares.get(each, 0.0) for each in lora.tensors))
        found.examples += row.examples
        found.tokens += row.tokens
    found.values = {name: sum(values) / max(len(values), 1) for name, values in norms.items()}
    found.norms = norms if given.per_example else None
    return found


CRITERION = Criterion("fisher", "Fisher Σθ²F(θ)", measure, version=2, additive=True)  # see `gradient`
