"""UniSpeech (Wang et al. 2021, arXiv 2101.07597): wav2vec 2.0, taught with letters and without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .wav2vec2 import SPEAKERS, Wav2Vec2Config, speech_family


@dataclass(frozen=True, kw_only=True)
class UniSpeechConfig(Wav2Vec2Config):
    """The keys of a UniSpeech `config.json`."""

    model_type: ClassVar[str] = "unispeech"
    unsaid: ClassVar = SPEAKERS
    ctc_loss_reduction: Literal["sum", "mean"] = "mean"


speech_family("unispeech", "unispeech", "UniSpeech", UniSpeechConfig, speakers=False)
