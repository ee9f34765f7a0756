"""Zamba2: three uses of two shared blocks with adapters and rotary positions; one block without, as a classifier."""

from cases import SMALL, case, reference, tokens

MAMBA = {"n_mamba_heads": 8, "mamba_d_state": 10, "mamba_ngroups": 2, "mamba_d_conv": 3, "chunk_size": 4}
SIZES = {**SMALL, **MAMBA, "num_key_value_heads": 6, "adapter_rank": 5}


@case("zamba2")
def _():
    from transformers import Zamba2Config, Zamba2ForCausalLM

    config = Zamba2Config(
        **{**SIZES, "num_hidden_layers": 4},
        layers_block_type=["linear_attention", "hybrid", "hybrid", "hybrid"],
        num_mem_blocks=2,
        use_shared_attention_adapter=True,
        use_mem_rope=True,
    )
    return reference(Zamba2ForCausalLM, config)


@case("zamba2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Zamba2Config, Zamba2ForSequenceClassification

    kinds = ["hybrid", "linear_attention", "hybrid"]
    config = Zamba2Config(**{**SIZES, "num_key_value_heads": 2}, layers_block_type=kinds, num_labels=3)
    return reference(Zamba2ForSequenceClassification, config)


def whole():
    ids, mask = tokens(pad=False)
    return {"input_ids": ids, "attention_mask": mask}


# Without padding: with a bias in front of it, the reference's convolution reads what is padding as if it were a token.
@case("zamba2-bias", variant=True, inputs=whole)
def _():
    from transformers import Zamba2Config, Zamba2ForCausalLM

    kinds = ["linear_attention", "hybrid", "hybrid"]
    return reference(Zamba2ForCausalLM, Zamba2Config(**SIZES, layers_block_type=kinds, add_bias_linear=True))
