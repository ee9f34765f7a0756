"""RecurrentGemma: two recurrent layers and one of local attention. transformers' recurrence sees padding, so there is none."""

import numpy as np

from cases import SMALL, VOCAB, case, reference

INPUTS = {
    "input_ids": np.random.RandomState(0).randint(3, VOCAB, (2, 11)),
    "attention_mask": np.ones((2, 11), int),
}


@case("recurrent_gemma", inputs=lambda: INPUTS)
def _():
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    config = RecurrentGemmaConfig(
        **SMALL,
        head_dim=12,
        attention_window_size=4,
        lru_width=60,
        conv1d_width=3,
        logits_soft_cap=2.0,
        attention_bias=True,
    )
    return reference(RecurrentGemmaForCausalLM, config)
