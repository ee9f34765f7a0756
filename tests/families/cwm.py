"""CWM: every fourth layer sees all, from the first on."""

from cases import SMALL, case, reference


@case("cwm")
def _():
    from transformers import CwmConfig, CwmForCausalLM

    return reference(CwmForCausalLM, CwmConfig(**SMALL, head_dim=16, sliding_window=5))
