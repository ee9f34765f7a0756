"""nanochat: norms without weights, heads turned the other way."""

from cases import SMALL, case, reference


@case("nanochat")
def _():
    from transformers import NanoChatConfig, NanoChatForCausalLM

    config = NanoChatConfig(**SMALL, head_dim=16, attention_bias=True, final_logit_softcapping=2.0)
    return reference(NanoChatForCausalLM, config)
