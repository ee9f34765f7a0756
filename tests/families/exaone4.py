"""EXAONE 4: norms after the parts, full layers without positions."""

from cases import SMALL, case, reference


@case("exaone4")
def _():
    from transformers import Exaone4Config, Exaone4ForCausalLM

    config = Exaone4Config(
        **SMALL, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    return reference(Exaone4ForCausalLM, config)


@case("exaone4-full", variant=True)
def _():
    from transformers import Exaone4Config, Exaone4ForCausalLM

    return reference(
        Exaone4ForCausalLM, Exaone4Config(**SMALL, sliding_window=None, layer_types=["full_attention"] * 3)
    )


@case("exaone4-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Exaone4Config, Exaone4ForSequenceClassification

    return reference(Exaone4ForSequenceClassification, Exaone4Config(**SMALL, num_labels=3))
