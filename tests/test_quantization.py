"""A backbone in 4 bits: what is refused, and what identifies it. Computing with it needs an NVIDIA GPU."""

import importlib.util

import pytest
import torch

from lora_drop.config.loading import load_config
from lora_drop.errors import UserError
from lora_drop.models.backbones import locate
from lora_drop.models.quantization import check_quantization, nf4

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda")


def asked(*overrides):
    return load_config([], ["quantization=nf4", "backbone=org/name", *overrides])


@pytest.mark.parametrize(
    ("overrides", "device", "text"),
    [
        (["method.name=full"], "cuda", "needs a method that is a PEFT adapter, and full is not one"),
        (["method.name=tied_lora"], "cuda", "and tied_lora is not one"),
        (["backbone=packaged:smollm2-135m"], "cuda", "is for backbones from the Hub or a folder"),
        ([], "cpu", "needs an NVIDIA GPU, but the device is cpu"),
    ],
)
def test_what_cannot_be_is_refused(overrides, device, text):
    with pytest.raises(UserError, match=text):
        check_quantization(asked(*overrides), torch.device(device))


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lora-drop\[qlora\]'"):
        check_quantization(asked(), CUDA)
    check_quantization(load_config([], []), CUDA)


def test_it_is_a_part_of_what_identifies_the_weights():
    plain, quantized = locate("tiny:llama"), locate("tiny:llama", quantization="nf4")
    assert plain.identity != quantized.identity and quantized.quantization == "nf4"


def test_the_settings_are_those_of_qlora():
    settings = nf4()
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type) == (True, "nf4")
    assert settings.bnb_4bit_use_double_quant and settings.bnb_4bit_compute_dtype == torch.bfloat16
