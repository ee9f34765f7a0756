"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): wav2vec 2.0's encoder, taught to name clusters of sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from .wav2vec2 import SPEAKERS, Wav2Vec2Config, speech_family


@dataclass(frozen=True, kw_only=True)
class HubertConfig(Wav2Vec2Config):
    """The keys of a HuBERT `config.json`."""

    model_type: ClassVar[str] = "hubert"
    unsaid: ClassVar = SPEAKERS
    feat_proj_layer_norm: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "conv_pos_batch_norm", False)
        return Wav2Vec2Config.normalize(data)


speech_family("hubert", "hubert", "Hubert", HubertConfig, ignore=("conv_pos_batch_norm",), speakers=False)
