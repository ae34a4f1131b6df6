"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) by PEFT: ΔW = P Λ Q, with singular values pruned during training.

Every module starts with 1.5 times its intended average rank. Between the first 15 % and the last 45 % of the steps, the
least important singular values of the whole model are set to 0, so that rank moves to the layers that need it (its §3.2
and 3.3). LoRA-drop's paper does not compare with AdaLoRA; it is included because users ask for it. Parameters are
counted at the start of training, when memory is needed. With `select_epoch: best`, the selected epoch may precede the
end of pruning and then has more singular values than the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods import lora
from lora_drop.methods.base import Method
from lora_drop.pruning.places import find_places
from lora_drop.pruning.selection import Selection

SURPLUS = 1.5
FIRST, LAST = 0.15, 0.45
"""Shares of the steps before pruning starts and after it ends."""
UNKNOWN = 2**31
"""Placeholder for the number of steps, which PEFT requires early; the real number is set when training starts."""


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put P, Λ and Q on every module of the target projections."""
    rank = config.rank or lora.RANK
    adalora = AdaLoraConfig(
        target_r=rank,
        init_r=round(SURPLUS * rank),
        total_step=UNKNOWN,
        lora_alpha=config.alpha or 2 * rank,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        **lora.where(backbone, find_places(backbone, config.target_projections)),
    )
    model = lora.wrap(backbone, adalora, seed)
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # a constant, which PEFT 0.21 leaves trainable on the meta device
            parameter.requires_grad_(False)
    return model


class Allocation:
    """Prunes after each step, and saves PEFT's running averages of importance in checkpoints."""

    AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, model: Any, steps: int):
        """Spread the pruning over `steps` optimizer steps. Raise UserError if these are too few."""
        self.adalora = model.base_model
        self.config = self.adalora.peft_config[self.adalora.trainable_adapter_name]
        first, last = round(FIRST * steps), round(LAST * steps)
        if steps - last - first < 2:
            raise UserError(
                f"AdaLoRA cannot prune in {steps} steps. Train longer (train.epochs) or in smaller batches "
                "(train.batch_size)."
            )
        self.config.total_step, self.config.tinit, self.config.tfinal = steps, first, last

    def step(self, number: int) -> None:
        """Update the importances from the gradients and set pruned singular values to 0."""
        for parameter in self.adalora.parameters():
            if parameter.grad is not None:  # a step that fp16's scaler skips: inf would stay in the averages for good
                parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.adalora.update_and_allocate(number)

    def state(self) -> dict[str, Tensor]:
        """Return PEFT's averages and the masks of kept singular values."""
        allocator = self.adalora.rankallocator
        averages = {
            f"{kind}/{name}": value for kind in self.AVERAGES for name, value in getattr(allocator, kind).items()
        }
        kept = {f"kept/{name}": torch.tensor(mask).flatten() for name, mask in (self.config.rank_pattern or {}).items()}
        return {**{name: value.detach().clone().contiguous() for name, value in averages.items()}, **kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state returned by `state`."""
        device = next(self.adalora.parameters()).device
        parts: dict[str, dict[str, Any]] = {kind: {} for kind in (*self.AVERAGES, "kept")}
        for key, value in state.items():
            kind, name = key.split("/", 1)
            parts[kind][name] = value.tolist() if kind == "kept" else value.to(device)
        for kind in self.AVERAGES:
            setattr(self.adalora.rankallocator, kind, parts[kind])
        self.config.rank_pattern = parts["kept"] or None


def orthogonality(model: Any) -> Tensor:
    """Return PEFT's regulariser: `orth_reg_weight` times the mean of all ‖PᵀP − I‖ and ‖QQᵀ − I‖ (its eq. 4)."""
    config = model.peft_config[model.base_model.trainable_adapter_name]
    norms = []
    for name, weight in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    return config.orth_reg_weight * torch.stack(norms).mean()


def save(model: nn.Module, folder: Path) -> None:
    """Write an ordinary PEFT adapter at its full initial rank, with zeros for pruned singular values.

    PEFT would cut the matrices to the ranks allocated last, which are wrong if an earlier epoch is selected.
    """
    assert isinstance(model, PeftModel)
    config: Any = model.active_peft_config
    config.rank_pattern = None
    lora.save(model, folder)


METHOD = Method(
    name="adalora",
    title="AdaLoRA",
    build=build,
    save=save,
    load=lora.load,
    stepper=Allocation,
    penalty=orthogonality,
)
