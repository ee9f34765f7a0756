"""GPT-2: learned positions, LayerNorm, Conv1D."""

from cases import VOCAB, case, reference


@case("gpt2")
def _():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return reference(GPT2LMHeadModel, config)
