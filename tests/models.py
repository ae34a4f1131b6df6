"""Small models with random weights, for the tests."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_drop.backbones import load_model, load_tokenizer, locate
from lora_drop.config import MethodConfig
from lora_drop.methods import get_method
from lora_drop.methods.lora import add_lora
from lora_drop.projections import find_places
from lora_drop.tasks import get_task


def backbone(name: str = "tiny:roberta", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny classifier with two labels, and its tokenizer."""
    located = locate(name)
    tokenizer = load_tokenizer(located)
    return load_model(located, get_task("toy-nli"), seed, tokenizer), tokenizer


def trained_lora(name: str = "tiny:roberta", seed: int = 0) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A LoRA whose B is not zero, as after a warm-up; layers differ in strength."""
    model, tokenizer = backbone(name, seed)
    peft_model = add_lora(model, MethodConfig(), seed, find_places(model))
    randomise_b(peft_model, seed)
    return peft_model, tokenizer


def randomise_b(model: torch.nn.Module, seed: int) -> None:
    """Draw every lora_B from a normal distribution whose width differs from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.01 * (1 + int(torch.randint(9, (), generator=generator))), generator=generator)


def inputs(tokenizer: PreTrainedTokenizerBase, count: int = 7) -> dict[str, torch.Tensor]:
    """A padded batch of sentences of very different length."""
    texts = [f"sentence number {index} " + "with words " * (index % 5) for index in range(count)]
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def method(name: str, backbone_model: PreTrainedModel, selection=None, seed: int = 0, **settings) -> torch.nn.Module:
    """Build a method on a backbone."""
    return get_method(name).build(backbone_model, MethodConfig(name=name, **settings), seed, selection)


def acting_scores(model, batches, first_call_only: bool = False) -> dict[str, float]:
    """What each LoRA layer adds, seen from outside: mean over examples of ‖layer(x) − base_layer(x)‖², float64, on real tokens."""
    from peft.tuners.lora import LoraLayer

    sums: dict[str, float] = {}
    called: set[str] = set()
    mask = None

    def hook(name):
        def added(layer, args, output):
            if first_call_only and name in called:
                return
            called.add(name)
            difference = (output - layer.base_layer(args[0])).double()
            if mask is not None and difference.ndim == 3:
                difference = difference.masked_fill(mask.unsqueeze(-1) == 0, 0)  # padding may be NaN
            sums[name] = sums.get(name, 0.0) + float(difference.square().sum())

        return added

    handles = [
        module.register_forward_hook(hook(name.removeprefix("base_model.model.")))
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]
    was, rows = model.training, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            called.clear()
            mask, rows = batch.get("attention_mask"), rows + len(next(iter(batch.values())))
            model(**{name: value for name, value in batch.items() if name != "labels"})
    model.train(was)
    for handle in handles:
        handle.remove()
    return {name: total / rows for name, total in sums.items()}
