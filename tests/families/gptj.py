"""GPT-J: neighbours rotated in pairs, a head with a bias."""

from cases import SMALL, VOCAB, case, reference


@case("gptj")
def _():
    from transformers import GPTJConfig, GPTJForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"n_positions": 64, "n_embd": 60, "n_layer": 3, "n_head": 6, "n_inner": 80, "rotary_dim": 6}
    return reference(GPTJForCausalLM, GPTJConfig(vocab_size=VOCAB, **sizes, layer_norm_epsilon=1e-3, **ids))
