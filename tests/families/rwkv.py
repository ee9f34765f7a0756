"""RWKV-4: the reference has no mask, so no padding here, and halves weights in place, so none are: see test_maskless.py."""

import numpy as np

from cases import SMALL, case, reference, tokens

INPUTS = dict(zip(("input_ids", "attention_mask"), tokens(pad=False), strict=True))
SIZES = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}


@case("rwkv", inputs=lambda: INPUTS, recurrent=True)
def _():
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(**SIZES, rescale_every=0)
    module = reference(RwkvForCausalLM, config)
    for block in module.rwkv.blocks:  # decays of all speeds
        block.attention.time_decay.add_(np.log(0.3))
    return module
