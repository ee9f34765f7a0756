"""Moonshine: rotary positions on a part of each head, a gated decoder; biases and padded heads in the variant."""

from typing import Any

import numpy as np

from cases import VOCAB, case, reference, tokens


def _moonshine(head: str, **more: Any) -> Any:
    import transformers

    keys = {
        **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "pad_token_id": 0},
        **{"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 3},
        **{"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4, **more},
    }
    return reference(getattr(transformers, head), transformers.MoonshineConfig(**keys))


def sound(samples: int = 3000) -> dict[str, np.ndarray]:
    values = np.random.RandomState(5).randn(3, samples).astype(np.float32)
    return {"input_values": values, "decoder_input_ids": tokens(3, 7, pad=False)[0]}


@case(
    "moonshine",
    task="seq2seq-lm",
    causal=False,
    encoder_decoder=True,
    inputs=sound,
    expected_failures={"flops_are_positive": "of 3000 tokens more rows make more slices, which leave out more keys"},
)
def _():
    return _moonshine("MoonshineForConditionalGeneration")


@case("moonshine-base", task="base", causal=False, encoder_decoder=True, inputs=sound, variant=True)
def _():
    return _moonshine("MoonshineModel", attention_bias=True, pad_head_dim_to_multiple_of=8)
