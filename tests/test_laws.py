"""Every kind of layer keeps every law; `make test-all` holds every family to them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest

import cases
from easyfn.models.wav2vec2 import frames_of
from easyfn.testing import Case, laws

DECODER = {"decoder_input_ids": np.random.default_rng(3).integers(3, cases.VOCAB, (2, 8))}

# A format meets one of each kind of layer; nf4 packs pairs, and Mamba's steps and Zamba2's adapters have an odd rank.
FORMATS = {"llama": ("8bit", "nf4"), "mixtral": ("8bit", "nf4")}
FORMATS |= dict.fromkeys(("mamba", "falcon_mamba", "jamba", "zamba2"), ("8bit",))


def case(name: str) -> Case:
    """The case of `tests/families` of that name."""
    known = cases.CASES[name]
    inputs = known.inputs() if known.inputs else {}
    sound = inputs.get("input_values")  # of which there are more than two rows, and hundreds of samples
    length = 8
    if known.encoder_decoder:
        inputs = DECODER if sound is None else {**DECODER, "input_values": sound[:2]}
    elif sound is not None:
        length = sound.shape[1] // 2 * 2
        masked = np.arange(2 * frames_of(known.model().config, length)).reshape(2, -1) % 3 == 0  # so that what stands
        inputs = {"input_values": sound[:2, :length], "mask_time_indices": masked}  # there is trained (SpecAugment)
    by_samples = sound is not None and not known.encoder_decoder
    return Case(
        quantization=FORMATS.get(name, ("nf4",)),
        name=name,
        torch=known.torch,
        make=lambda key: known.model(),
        causal=known.encoder_decoder or (known.causal and known.generates),
        tokens="decoder_input_ids" if known.encoder_decoder else "input_values" if by_samples else "input_ids",
        length=length,
        inputs=inputs,
        expected_failures=known.expected_failures,
    )


QUICK = ["llama", "bert", "t5", "mamba2"]  # a decoder, an encoder, both, and a recurrence
KINDS = ["gemma3", "mixtral"]  # windows by layer, experts
REST = [name for name in cases.names(variant=False) if name not in QUICK + KINDS]


ELSEWHERE = ["shard_changes_nothing"]  # on many meshes: test_sharding.py


@pytest.mark.quick(
    "testing",
    "a decoder keeps the laws",
    rows=[
        "llama-cache_is_no_cache",
        "llama-padding_is_invisible",
        "llama-stack_is_list",
        "bert-padding_is_invisible",
        "mamba2-documents_do_not_see_each_other",
        "t5-future_does_not_leak",
    ],
)
@laws.parametrize(*(case(name) for name in QUICK), without=ELSEWHERE)
def test_family(law):
    law()


@laws.parametrize(*(case(name) for name in KINDS), without=ELSEWHERE)
def test_kind(law):
    law()


@pytest.mark.every_family
@laws.parametrize(*(case(name) for name in REST))
def test_every_family(law):
    law()
