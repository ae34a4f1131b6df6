"""Find the active LoRAs of a PEFT model and check that each computes ΔW = scaling · B A.

PEFT has many relatives of LoRA. Those with another ΔW, and those that have already changed W, are refused by name:
scoring or sharing them would give silently wrong results.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_drop.errors import UserError
from lora_drop.pruning.tensor_names import PREFIX

KEEPS_W = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's `init_lora_weights` that leave the pretrained W unchanged. The others (pissa, olora, corda, loftq,
…) move a part of W into the adapter, so that neither ΔW alone nor W without it is meaningful."""


@dataclass(frozen=True)
class Lora:
    """The active LoRA of one module."""

    layer: Any
    """PEFT's layer."""
    adapter: str
    """Name of the adapter in the layer."""

    @property
    def projector(self) -> nn.Linear:
        """The module that holds A."""
        return self.layer.lora_A[self.adapter]

    @property
    def down(self) -> Tensor:
        """A, `rank inputs`."""
        return self.projector.weight

    @property
    def up(self) -> Float[Tensor, "outputs inner"]:
        """B, `outputs rank`. With `lora_bias`, the bias is an extra last column, for a constant 1 appended to z."""
        linear = self.layer.lora_B[self.adapter]
        weight: Tensor = linear.weight.detach().float()
        return weight if linear.bias is None else torch.cat([weight, linear.bias.detach().float()[:, None]], dim=1)

    @property
    def merges(self) -> bool:
        """True if PEFT merges ΔW into W for each pass and so never computes z = A x."""
        return isinstance(self.layer.base_layer, nn.MultiheadAttention)

    @property
    def metric(self) -> Float[Tensor, "inner inner"]:
        """M = scaling² · Bᵀ B, so that ‖ΔW x‖² = zᵀ M z with z = A x."""
        up = self.up
        return self.scaling**2 * product(up.T, up)

    @property
    def scaling(self) -> float:
        """Factor of B A."""
        return float(self.layer.scaling[self.adapter])

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.layer.r[self.adapter])

    @property
    def tensors(self) -> list[nn.Parameter]:
        """A and B, and the bias of B if it has one."""
        halves = (self.layer.lora_A[self.adapter], self.layer.lora_B[self.adapter])
        return [parameter for half in halves for parameter in half.parameters()]

    @property
    def parameters(self) -> int:
        """Number of parameters in the pair."""
        return sum(parameter.numel() for parameter in self.tensors)

    def project(self, x: Tensor) -> Float[Tensor, "*batch inner"]:
        """Return z = A x for x of shape `*batch inputs`, with a constant 1 appended if B has a bias."""
        mixed = torch.is_autocast_enabled(x.device.type)  # autocast casts both itself
        return self.completed(self.projector(x if mixed else x.to(self.down.dtype)))

    def completed(self, z: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch inner"]:
        """Return z = A x with a constant 1 appended if B has a bias."""
        if self.layer.lora_B[self.adapter].bias is None:
            return z
        return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)


def bare(name: str) -> str:
    """Return a module's name without the prefixes of PEFT and of any wrapper around it (torch.compile, DataParallel)."""
    return name.rpartition(PREFIX)[2]


def unwrapped(model: nn.Module) -> Any:
    """Return the PEFT model inside any wrapper (DataParallel, DDP), or a model that has none as it is."""
    from peft import PeftModel

    return next((module for module in model.modules() if isinstance(module, PeftModel)), model)


def product(one: Tensor, two: Tensor) -> Tensor:
    """Return the product of two matrices in their own precision, even under autocast."""
    with torch.autocast(one.device.type, enabled=False):
        return one @ two


def loras(model: nn.Module) -> dict[str, Lora]:
    """Return the active LoRA of every module that has one, by the module's name before PEFT wrapped it, in model order.

    Raises:
        UserError: if the model has no LoRA; if several adapters are active, or the active one is merged or switched
            off; if its ΔW is not scaling · B A (AdaLoRA, DoRA, `target_parameters`, …); or if its initialisation has
            changed W (PiSSA, …).
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = {
        bare(name): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not type(module).__module__.startswith("peft.tuners.trainable_tokens")
    }
    others = sorted({_family(layer) for layer in tuned.values() if not _is_lora(layer)})
    if others:
        raise UserError(
            f"The adapter is {', '.join(others)}. Layers are scored and shared by their LoRA: use PEFT's LoraConfig."
        )
    found = {}
    for name, layer in tuned.items():
        assert isinstance(layer, LoraLayer)
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        if active and layer.lora_A[active[0]].weight.ndim == 2:  # a language model's blocks hold no convolutions
            _refuse_state(name, layer, active)
            found[name] = Lora(layer, active[0])
    if not found:
        raise UserError(
            "The model has no LoRA to score. Wrap it with peft.get_peft_model(model, LoraConfig(...)) and train it a little first."
        )
    for adapter in {lora.adapter for lora in found.values()}:
        _refuse_config(model, adapter)
    return found


def unscorable(model: nn.Module, scorable: Container[str]) -> dict[str, int]:
    """Return the parameters of each active LoRA that is not among the scorable ones, by the module's name.

    That also finds the LoRAs of embeddings and convolutions, which `loras` does not return.
    """
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, layer in ((bare(full), module) for full, module in model.named_modules()):
        if isinstance(layer, LoraLayer) and name not in scorable:
            halves = (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B)
            active = [
                tensor.numel()
                for half in halves
                for adapter, tensor in half.named_parameters()
                if adapter.partition(".")[0] in layer.active_adapters
            ]
            if active:
                found[name] = sum(active)
    return found


def _is_lora(layer: Any) -> bool:
    return type(layer).__module__.startswith("peft.tuners.lora")


def _family(layer: Any) -> str:
    """Return the kind of an adapter's layer: PEFT's name for it, or its class if it is not PEFT's."""
    parts = type(layer).__module__.split(".")
    return parts[2] if parts[:2] == ["peft", "tuners"] else type(layer).__name__


def _refuse_state(name: str, layer: Any, active: list[str]) -> None:
    if len(active) > 1:
        raise UserError(
            f"{name} has {len(active)} active adapters ({', '.join(active)}). Activate one: model.set_adapter({active[0]!r})"
        )
    if layer.disable_adapters:
        raise UserError("The adapter is switched off. Switch it on first: model.enable_adapter_layers()")
    if layer.merged:
        raise UserError("The adapter is merged into the model. Undo that first: model.unmerge_adapter()")
    if hasattr(layer, "parameter_name"):
        raise UserError(
            f"{name} has its LoRA on a parameter (target_parameters), not on a linear module: its input cannot be "
            "observed. Choose linear modules (target_modules)."
        )
    if active[0] in layer.lora_variant:
        variant = type(layer.lora_variant[active[0]]).__name__.removesuffix("Variant").removesuffix("Linear")
        variant = {"Dora": "DoRA"}.get(variant, variant)
        raise UserError(
            f"{name} has {variant}, whose update of W is not scaling · B A. Use a plain LoRA to find the layers, then "
            "use any adapter on the layers that it finds."
        )


def _refuse_config(model: nn.Module, adapter: str) -> None:
    config = getattr(unwrapped(model), "peft_config", {}).get(adapter)
    start = getattr(config, "init_lora_weights", True)
    if start not in KEEPS_W:
        raise UserError(
            f"The adapter {adapter!r} was initialised with {start!r}, which moves a part of W into B A: what it adds is not ΔW, and a module "
            "without its own pair would be damaged. Use init_lora_weights=True."
        )
