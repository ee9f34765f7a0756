"""xLSTM: two heads, chunks of four, gates open; the reference has no mask, so no padding here: see test_maskless.py."""

from cases import SMALL, case, reference
from families.rwkv import INPUTS


@case("xlstm", inputs=lambda: INPUTS, recurrent=True)
def _():
    from transformers import xLSTMConfig, xLSTMForCausalLM

    # The reference's cache has widths that are multiples of 64, whatever the layers have.
    sizes = {"vocab_size": SMALL["vocab_size"], "hidden_size": 128, "num_hidden_layers": 3, "num_heads": 2}
    config = xLSTMConfig(**sizes, chunk_size=4, ffn_proj_factor=0.7, gate_soft_cap=4.0, output_logit_soft_cap=3.0)
    module = reference(xLSTMForCausalLM, config)
    for block in module.backbone.blocks:
        block.mlstm_layer.igate_preact.bias.add_(9.5)
    return module
