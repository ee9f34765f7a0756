"""Mamba-2: a recurrence, no attention."""

from cases import VOCAB, case, reference


@case("mamba2", recurrent=True)
def _():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=3,
        num_heads=12,
        head_dim=8,
        state_size=10,
        n_groups=4,
        conv_kernel=3,
        chunk_size=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return reference(Mamba2ForCausalLM, config)
