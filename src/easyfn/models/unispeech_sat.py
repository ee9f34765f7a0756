"""UniSpeech-SAT (Chen et al. 2021, arXiv 2110.05752): HuBERT's way of learning, for who speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .wav2vec2 import Wav2Vec2Config, speech_family


@dataclass(frozen=True, kw_only=True)
class UniSpeechSatConfig(Wav2Vec2Config):
    """The keys of a UniSpeech-SAT `config.json`."""

    model_type: ClassVar[str] = "unispeech-sat"
    ctc_loss_reduction: Literal["sum", "mean"] = "mean"


speech_family("unispeech-sat", "unispeech_sat", "UniSpeechSat", UniSpeechSatConfig)
