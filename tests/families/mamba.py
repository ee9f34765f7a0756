"""Mamba: a selective scan in every layer, longer than a chunk of it nowhere but in the tests of the scan."""

from cases import VOCAB, case, reference

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 6,
    "conv_kernel": 3,
    "time_step_rank": 5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@case("mamba", recurrent=True)
def _():
    from transformers import MambaConfig, MambaForCausalLM

    return reference(MambaForCausalLM, MambaConfig(**SIZES, expand=3))


@case("mamba-bare", recurrent=True, variant=True)
def _():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(**SIZES, use_conv_bias=False, tie_word_embeddings=False, residual_in_fp32=False)
    return reference(MambaForCausalLM, config)
