"""LED: windows of the encoder's layers that are shorter than the texts, and global tokens."""

from typing import Any

import numpy as np

from cases import VOCAB, case
from families.bart import small


def _led(head: str, **more: Any) -> Any:
    windows = {"attention_window": [4, 6], "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40}
    return small("LED", head, **{**windows, "max_position_embeddings": 40, **more})


def _with_global() -> dict[str, np.ndarray]:
    ids = np.random.RandomState(4).randint(3, VOCAB, (3, 13))
    mask, everywhere = np.ones_like(ids), np.zeros_like(ids)
    ids[1, -4:] = mask[1, -4:] = 0
    everywhere[:2, 0] = everywhere[1, 5] = everywhere[2, 11] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "global_attention_mask": everywhere,
        "decoder_input_ids": ids[:, :5],
    }


@case("led", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return _led("ForConditionalGeneration")


@case("led-global", task="base", causal=False, encoder_decoder=True, inputs=_with_global, variant=True)
def _():
    return _led("Model", attention_window=4)
