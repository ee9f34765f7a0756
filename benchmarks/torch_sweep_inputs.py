"""What some classes of transformers take that no rule of `torch_sweep_models` says: series, boxes, videos, prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sizes:
    torch: Any
    config: Any
    rows: int
    length: int

    def normal(self, *shape: int) -> Any:
        return self.torch.randn(self.rows, *shape)

    def ones(self, *shape: int) -> Any:
        return self.torch.ones(self.rows, *shape, dtype=self.torch.long)

    def ids(self, *shape: int, most: int = 90, least: int = 4) -> Any:
        return self.torch.randint(least, most, (self.rows, *(shape or (self.length,))))

    def text(self) -> dict[str, Any]:
        return {"input_ids": self.ids(), "attention_mask": self.ones(self.length)}


def series(s: Sizes) -> dict[str, Any]:
    c = s.config
    past = c.context_length + max(c.lags_sequence)
    return {"past_values": s.normal(past), "past_time_features": s.normal(past, c.num_time_features),
            "past_observed_mask": s.ones(past).float(), "future_values": s.normal(c.prediction_length),
            "future_time_features": s.normal(c.prediction_length, c.num_time_features)}  # fmt: skip


def channels(s: Sizes) -> dict[str, Any]:
    return {"past_values": s.normal(s.config.context_length, s.config.num_input_channels)}


def decisions(s: Sizes) -> dict[str, Any]:
    n, c = s.length, s.config
    return {"states": s.normal(n, c.state_dim), "actions": s.normal(n, c.act_dim), "rewards": s.normal(n, 1),
            "returns_to_go": s.normal(n, 1), "timesteps": s.ids(n, most=20), "attention_mask": s.ones(n)}  # fmt: skip


def video(s: Sizes) -> dict[str, Any]:
    size = s.config.image_size
    high, wide = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": s.normal(s.config.num_frames, s.config.num_channels, high, wide)}


def packed(s: Sizes, grid: str, **more: Any) -> dict[str, Any]:
    """A picture a row of 4 by 4 patches, each patch with its channels."""
    c = s.config
    patches = s.torch.randn(16 * s.rows, getattr(c, "num_channels", 3), c.patch_size, c.patch_size)
    return {"pixel_values": patches, grid: s.torch.tensor([[1, 4, 4]] * s.rows), **more}


def navit(s: Sizes) -> dict[str, Any]:
    """The patches of all rows beside each other, in one picture of one row of patches."""
    p = s.config.patch_size
    wide = s.torch.randn(1, s.config.num_channels, p, 16 * s.rows * p)
    return {"pixel_values": wide, "target_sizes": s.torch.tensor([[4, 4]] * s.rows)}


def placed(s: Sizes, side: int = 6) -> dict[str, Any]:
    """Patches and their places."""
    places = s.torch.stack(s.torch.meshgrid(s.torch.arange(side), s.torch.arange(side), indexing="xy"), -1)
    return {"pixel_values": s.torch.rand(s.rows, side * side, 3 * s.config.patch_size**2),
            "pixel_position_ids": places.reshape(1, -1, 2).expand(s.rows, -1, -1).contiguous()}  # fmt: skip


def image(*size: int) -> Callable[[Sizes], dict[str, Any]]:
    return lambda s: {"pixel_values": s.normal(*size)}


def points(s: Sizes) -> dict[str, Any]:
    """A picture and a point in it."""
    vision = s.config.vision_config
    size = getattr(vision, "image_size", None) or vision.backbone_config.image_size
    size = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": s.normal(3, *size), "input_points": s.torch.rand(s.rows, 1, 1, 2) * size[0],
            "input_labels": s.ones(1, 1)}  # fmt: skip


def with_picture(s: Sizes) -> dict[str, Any]:
    size = getattr(s.config, "vision_config", s.config).image_size
    return {**s.text(), "pixel_values": s.normal(3, size, size)}


def boxes(s: Sizes, *shape: int, most: int = 100) -> Any:
    """Corners, the second to the right of the first and below it."""
    first = s.ids(*(shape or (s.length,)), 2, most=most // 2, least=0)
    return s.torch.cat([first, first + s.ids(*(shape or (s.length,)), 2, most=most // 2, least=1)], -1)


def shown(s: Sizes, token: int, many: int) -> dict[str, Any]:
    """Text with a picture's tokens after the first, and the picture."""
    text, put = s.text(), s.torch.full((s.rows, many), token)
    ids = s.torch.cat([text["input_ids"][:, :1], put, text["input_ids"][:, 1:]], 1)
    size = s.config.vision_config.image_size
    return {"input_ids": ids, "attention_mask": s.ones(ids.shape[1]), "pixel_values": s.normal(3, size, size)}


INPUTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {  # by class
    **dict.fromkeys(("AutoformerModel", "InformerModel", "TimeSeriesTransformerModel"), series),
    **dict.fromkeys(("PatchTSTModel", "PatchTSMixerModel"), channels),
    "TimesFmModel": lambda s: {"past_values": s.normal(64), "past_values_padding": s.ones(64) * 0,
                               "freq": s.ones(1) * 0},
    "TimesFm2_5Model": lambda s: {"past_values": s.normal(64), "past_values_padding": s.ones(64) * 0},
    "DecisionTransformerModel": decisions,
    "ViTMAEModel": lambda s: {"pixel_values": s.normal(3, 32, 32), "noise": s.torch.rand(s.rows, 16)},
    "UnivNetModel": lambda s: {"input_features": s.normal(8, s.config.num_mel_bins),
                               "noise_sequence": s.normal(8, s.config.model_in_channels)},
    **dict.fromkeys(("VivitModel", "VideoMAEModel", "TimesformerModel"), video),
    "TvpModel": lambda s: {**s.text(), "pixel_values": s.normal(s.config.num_frames, 3, 64, 64)},
    "VJEPA2Model": lambda s: {"pixel_values_videos": s.normal(s.config.frames_per_clip, 3, 32, 32)},
    "VideoPrismVisionModel": lambda s: {"pixel_values_videos": s.normal(s.config.num_frames, 3, 32, 32)},
    "VideoPrismClipModel": lambda s: {**s.text(), "pixel_values_videos": s.normal(
        s.config.vision_config.num_frames, 3, 32, 32)},
    "XCLIPModel": lambda s: {**s.text(), "pixel_values": s.normal(s.config.vision_config.num_frames, 3, 32, 32)},
    "Inkling2VisionModel": lambda s: packed(s, "image_grid_thw"),
    "Kimi_K25VisionModel": lambda s: packed(s, "grid_thw"),
    "VideoLlama3VisionModel": lambda s: {
        "pixel_values": s.torch.randn(16 * s.rows, 3 * s.config.patch_size**2),
        "grid_thw": s.torch.tensor([[1, 4, 4]] * s.rows), "merge_sizes": s.torch.tensor([2] * s.rows)},
    **dict.fromkeys(("MiniCPMOcrVisionModel", "MiniCPMV4_7VisionModel"), navit),
    "Gemma4VisionModel": placed,
    "DepthProModel": image(3, 64, 64),
    "EfficientLoFTRModel": image(2, 3, 64, 64), "LightGlueForKeypointMatching": image(2, 3, 64, 64),
    "PPOCRV5MobileRecModel": image(3, 96, 128),
    **dict.fromkeys(("PPOCRV5ServerRecModel", "PPOCRV6SmallRecModel", "PPOCRV6TinyRecModel",
                     "PPOCRV6MediumRecModel"), image(3, 48, 64)),
    **dict.fromkeys(("SamModel", "SamHQModel", "Sam2Model", "Sam3TrackerModel", "EdgeTamModel"), points),
    "SegGptModel": lambda s: {k: s.normal(3, s.config.image_size[0] // 2, s.config.image_size[1])
                              for k in ("pixel_values", "prompt_pixel_values", "prompt_masks")},
    "OneFormerModel": lambda s: {"pixel_values": s.normal(3, 64, 64),
                                 "task_inputs": s.ids(s.config.task_seq_len).float()},
    **dict.fromkeys(("BridgeTowerModel", "ViltModel", "VisionTextDualEncoderModel", "AlignModel", "Sam3Model",
                     "Sam3LiteTextModel"), with_picture),
    "LayoutLMv3Model": lambda s: {**s.text(), "bbox": boxes(s), "pixel_values": s.normal(3, 32, 32)},
    "LiltModel": lambda s: {**s.text(), "bbox": boxes(s)},
    "BrosModel": lambda s: {**s.text(), "bbox": boxes(s).float() / 100},
    "LxmertModel": lambda s: {**s.text(), "visual_feats": s.normal(5, s.config.visual_feat_dim),
                              "visual_pos": s.torch.rand(s.rows, 5, s.config.visual_pos_dim)},
    "VisualBertModel": lambda s: {**s.text(), "visual_embeds": s.normal(5, s.config.visual_embedding_dim),
                                  "visual_attention_mask": s.ones(5).float()},
    "Blip2QFormerModel": lambda s: {"query_embeds": s.normal(5, s.config.hidden_size),
                                    "encoder_hidden_states": s.normal(7, s.config.encoder_hidden_size)},
    "ClapModel": lambda s: {**s.text(), "is_longer": s.ones(1) == 0, "input_features": s.normal(
        1, s.config.audio_config.spec_size**2 // s.config.audio_config.num_mel_bins, s.config.audio_config.num_mel_bins)},
    "ClvpModelForConditionalGeneration": lambda s: {**s.text(), "input_features": s.normal(
        s.config.decoder_config.feature_size, 32)},
    "ASTModel": lambda s: {"input_values": s.normal(s.config.max_length, s.config.num_mel_bins)},
    "DiaModel": lambda s: {**s.text(), "decoder_input_ids": s.ids(5, s.config.decoder_config.num_channels)},
    "KyutaiSpeechToTextModel": lambda s: {"input_ids": s.ids(s.length, s.config.num_codebooks + 1)},
    "CsmForConditionalGeneration": lambda s: {"input_ids": s.ids(s.length, s.config.num_codebooks)},
    **dict.fromkeys(("MimiDecoderModel", "PocketTTSAudioTokenizerDecoderModel"),
                    lambda s: {"latents": s.normal(s.config.hidden_size, 6)}),
    "PeAudioModel": lambda s: {**s.text(), "input_values": s.normal(1, 3840)},
    **dict.fromkeys(("NeuCodecModel", "Xcodec2Model"),
                    lambda s: {"input_values": s.normal(1, 3200), "input_features": s.normal(10, 160)}),
    "FunAsrNanoEncoder": lambda s: {"input_features": s.normal(20, 112), "input_features_mask": s.ones(20)},
    "FastSpeech2ConformerWithHifiGan": lambda s: {"input_ids": s.ids(most=70), "attention_mask": s.ones(s.length)},
    "Gemma3nAudioEncoder": lambda s: {"audio_mel": s.normal(64, s.config.input_feat_size),
                                      "audio_mel_mask": s.ones(64) == 0},
    "Pix2StructForConditionalGeneration": lambda s: {
        "flattened_patches": s.torch.cat([s.ids(16, 2, most=4, least=1).float(), s.normal(
            16, s.config.vision_config.patch_embed_hidden_size)], -1),
        "attention_mask": s.ones(16), "decoder_input_ids": s.ids()},
    "IdeficsForVisionText2Text": lambda s: {**s.text(), "pixel_values": s.normal(1, 3, 32, 32),
                                            "image_attention_mask": s.ones(s.length, 1)},
    "InstructBlipForConditionalGeneration": lambda s: {
        **shown(s, 90, s.config.num_query_tokens), "qformer_input_ids": s.ids(5)},
    "Kosmos2ForConditionalGeneration": lambda s: {
        **(found := shown(s, 90, s.config.latent_query_num)),
        "image_embeds_position_mask": (found["input_ids"] == 90).long()},
    "UdopForConditionalGeneration": lambda s: {
        **s.text(), "bbox": boxes(s).float() / 100, "pixel_values": s.normal(3, 32, 32), "decoder_input_ids": s.ids(5)},
    "MuseGlimmerAssistantModel": lambda s: {
        "noise_embeds": s.normal(4, s.config.hidden_size),
        "context_hidden_states": s.normal(5, s.config.hidden_size * len(s.config.target_layer_ids))},
    "Nemotron3_5TranscribeWordTimestampModel": lambda s: {"inputs_embeds": s.normal(8, s.config.hidden_size)},
    "SpeechT5Model": lambda s: {"input_values": s.normal(12, s.config.hidden_size),
                                "decoder_input_values": s.normal(5, s.config.hidden_size)},
}  # fmt: skip
