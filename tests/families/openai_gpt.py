"""GPT: norms on the sums, matrices that the file holds transposed."""

from cases import SMALL, VOCAB, case, reference


@case("openai-gpt")
def _():
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = OpenAIGPTConfig(vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=3, n_head=6, **ids)
    return reference(OpenAIGPTLMHeadModel, config)
