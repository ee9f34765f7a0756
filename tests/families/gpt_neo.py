"""GPT-Neo: windows shorter than the sequence in the local layers."""

from cases import SMALL, VOCAB, case, reference


@case("gpt_neo")
def _():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        num_layers=3,
        num_heads=6,
        intermediate_size=80,
        max_position_embeddings=64,
        attention_types=[[["local"], 1], [["global", "local"], 1]],
        window_size=4,
        **ids,
    )
    config.attention_layers = ["local", "local", "global"]  # as files say it too; it wins
    return reference(GPTNeoForCausalLM, config)
