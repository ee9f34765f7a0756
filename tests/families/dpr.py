"""DPR: both encoders, with a projection and without."""

from typing import Any

from cases import SMALL, case, reference


def _dpr(side: str, **more: Any) -> Any:
    import transformers

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(getattr(transformers, f"DPR{side}Encoder"), transformers.DPRConfig(**small, **more))


@case("dpr", task="question-encoder", causal=False)
def _():
    return _dpr("Question", projection_dim=20)


@case("dpr-context", task="context-encoder", causal=False, variant=True)
def _():
    return _dpr("Context", hidden_act="gelu_new")
