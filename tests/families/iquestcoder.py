"""IQuest-Coder: Llama."""

from cases import SMALL, case, reference


@case("iquestcoder")
def _():
    from transformers import IQuestCoderConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, IQuestCoderConfig(**SMALL, head_dim=16, attention_bias=True))
