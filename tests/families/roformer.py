"""RoFormer, with each of its heads; values that are rotated, too."""

import numpy as np

from cases import SMALL, case, reference
from encoder_cases import HEADS, encoder_cases

encoder_cases(
    "RoFormer",
    "RoFormerConfig",
    heads=[head for head in HEADS if head != "multiple-choice"],
    embedding_size=20,
    hidden_act="gelu_new",
)


@case("roformer-values", task="base", causal=False, variant=True)
def _():
    from transformers import RoFormerConfig, RoFormerModel

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(RoFormerModel, RoFormerConfig(**small, rotary_value=True))


def _choices() -> dict[str, np.ndarray]:
    """Texts without padding: transformers reads the last place of a row, whatever is there."""
    ids = np.random.RandomState(0).randint(3, 90, (2, 3, 7))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@case("roformer-choice", task="multiple-choice", causal=False, variant=True, inputs=_choices)
def _():
    from transformers import RoFormerConfig, RoFormerForMultipleChoice

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(RoFormerForMultipleChoice, RoFormerConfig(**small))
