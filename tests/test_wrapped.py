"""A model inside another module, as DataParallel, DDP and Accelerate's `prepare` return it."""

import pytest
from peft import LoraConfig, get_peft_model
from test_adapters import BASE, batch, bert, fill
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import lora_drop
from lora_drop.errors import UserError


class Wrapper(nn.Module):
    """Like DDP: it has the model's forward, and none of its attributes."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def test_an_encoder_decoder_in_a_wrapper_has_the_same_scores():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    config = AutoConfig.for_model("t5", vocab_size=200, **sizes)
    model = fill(get_peft_model(AutoModelForSeq2SeqLM.from_config(config), LoraConfig(target_modules=["q", "v"])))
    inputs = batch()
    texts = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["input_ids"] < 60, -100)}
    assert lora_drop.score(Wrapper(model), [texts]) == lora_drop.score(model, [texts])


def test_an_initialisation_that_changes_w_is_refused_in_a_wrapper():
    model = get_peft_model(bert(), LoraConfig(**BASE, init_lora_weights="pissa"))
    with pytest.raises(UserError, match="initialised with 'pissa'"):
        lora_drop.score(Wrapper(model), [batch()])


@pytest.mark.parametrize("shares", [True, False])
def test_a_model_in_a_wrapper_is_shared(shares):
    model = fill(get_peft_model(bert(), LoraConfig(**BASE)))
    selection = lora_drop.select(lora_drop.score(model, [batch()]), threshold=0.3, share=shares)
    lora_drop.share(Wrapper(model), selection)
    assert sum(each.numel() for name, each in model.named_parameters() if "lora_" in name) == (
        selection.trainable_parameters
    )


def test_a_layer_of_ones_own_is_named():
    """PEFT takes a class for modules that it does not know; nobody else can say what its ΔW is."""
    from peft.tuners.lora import Linear

    class Own(nn.Linear):
        pass

    class OwnLora(Linear):
        pass

    config, plain = LoraConfig(**BASE), bert()
    config._register_custom_module({Own: OwnLora})
    plain.bert.encoder.layer[0].attention.self.query = Own(32, 32)
    with pytest.raises(UserError, match="The adapter is OwnLora"):
        lora_drop.score(get_peft_model(plain, config), [batch()])
