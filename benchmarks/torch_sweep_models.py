"""Tiny models of transformers' types, and inputs for them: what `torch_sweep.py` converts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch_sweep_inputs import INPUTS, Sizes

SMALL = {  # a key of a config -> the most that a shrunken config has there
    "vocab_size": 99, "hidden_size": 32, "hidden_size_global": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32,
    "hidden_dim": 32, "dim": 32, "width": 32, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "depth": 2, "num_decoder_layers": 2, "num_encoder_layers": 2,
    "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "num_attention_heads": 4, "num_heads": 4, "n_head": 4,
    "n_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_head": 8, "rotary_dim": 4,
    "intermediate_size": 64, "d_ff": 64, "d_inner": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "n_inner": 64, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 16, "moe_intermediate_size": 16,
    "shared_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_topk": 2, "moe_k": 2, "moe_num_experts": 4, "zero_expert_num": 2, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "n_group": 1, "num_expert_group": 1, "topk_group": 1, "image_size": 32, "patch_size": 8,
    "max_position_embeddings": 64, "n_positions": 64, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16, "state_size": 8, "index_head_dim": 16, "index_n_heads": 4,
    "index_topk": 4, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "linear_head_dim": 8, "linear_num_heads": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "embedding_size": 32, "embedding_dim": 32, "emb_dim": 32,
    "entity_vocab_size": 50, "entity_emb_size": 16, "projection_dim": 32, "word_embed_proj_dim": 32,
    "vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "encoder_hash_byte_group_vocab": 50, "sliding_window": 4, "attention_window": 4, "num_mel_bins": 16,
    "max_source_positions": 32, "max_target_positions": 32, "num_latents": 8, "d_latents": 32,
    "num_self_attends_per_block": 2, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 32,
    "num_kv_shared_layers": 0, "num_nextn_predict_layers": 0, "first_k_dense_replace": 1, "text_hidden_size": 32,
    "audio_hidden_size": 32, "mamba_d_ssm": 64, "vision_hidden_size": 32, "adapter_in_dim": 32, "codebook_dim": 32,
    "index_kpool": 2, "n_groups": 2, "mamba_n_groups": 2, "mamba_ngroups": 2, "hc_sinkhorn_iters": 3, "upsample_groups": 32,
    "context_size": 8, "mm_tokens_per_image": 4, "num_queries": 4, "encoder_hidden_size": 32, "num_frames": 4,
}  # fmt: skip
# Keys that follow from others, and that the class works out anew.
DERIVED = {"out_features", "out_indices", "stage_names", "per_layer_config", "attention_layers", "layers_block_type",
           "stage_block_stride", "stage_block_out_channels", "stage_block_in_channels"}  # fmt: skip
# Rotary positions of text and pictures, whose parts are as wide as a small head.
PARTS = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 1.0,
    }
}
SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 2, "moving_average": 3,
          "label_length": 4, "feature_size": 6}  # fmt: skip
SAM = {"output_channels": 32, "num_pos_feats": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64}
# What no rule says: a type, or the end of a nested config's name -> its keys.
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
                                                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8}, "ministral": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16, "n_groups": 2, "chunk_size": 4},
    "nemotron": {"num_key_value_heads": 2},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 64,
                 "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "attn_layers": ["local", "lsh"], "num_buckets": 4,
                 "hash_seed": 0},
    "ReformerModelWithLMHead": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"num_blocks": 2, "hidden_size": 32, "embedding_dim": 32, "chunk_size": 4},
    "zamba": {"num_hidden_layers": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4,
              "layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mamba_kernels": False},
    "zamba2": {"num_hidden_layers": 3, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 4,
               "layers_block_type": ["linear_attention", "linear_attention", "hybrid"], "use_mamba_kernels": False,
               "chunk_size": 4, "hybrid_layer_ids": [2], "mamba_headdim": 16},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "neomme": {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                                   "full_attention": {"rope_type": "default", "rope_theta": 1e6,
                                                      "partial_rotary_factor": 0.5}}},
    "perceiver": {"train_size": [16, 16], "num_frames": 2, "output_shape": [1, 2, 16, 16], "output_num_channels": 8,
                  "_label_trainable_num_channels": 16, "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "donut-swin": {"embed_dim": 24, "depths": [1, 1, 1, 1], "window_size": 2, "patch_size": 2},
    "swin": {"embed_dim": 24, "depths": [1, 1, 1, 1], "window_size": 2, "patch_size": 2},
    "swinv2": {"embed_dim": 24, "depths": [1, 1, 1, 1], "window_size": 2, "patch_size": 2},
    "efficientnet": {"image_size": 64, "hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 1.0},
    "levit": {"image_size": 64, "patch_size": 16, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2],
              "depths": [1, 1, 1], "key_dim": [8] * 3, "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]]},
    "mobilevitv2": {"patch_size": 2, "image_size": 64, "base_attn_unit_dims": [16, 24, 32], "n_attn_blocks": [1, 1, 1]},
    "mobilevit": {"patch_size": 2, "image_size": 64},
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6},
    "siglip2": {"vision_config": {"num_patches": 16}},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text",
                     "glm_image_text", "paddleocr_vl_text"), PARTS),
    "ernie4_5_vl_moe_text": {"rope_parameters": {**PARTS["rope_parameters"], "mrope_section": [1, 1, 2]}},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": {**PARTS["rope_parameters"], "mrope_section": [1, 1, 1, 1]}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 93}, "qwen3_omni_moe_thinker": {"vision_start_token_id": 93},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), SERIES),
    "maskformer-swin": {"embed_dim": 24, "depths": [1, 1, 1, 1], "window_size": 2, "patch_size": 2},
    "audio-spectrogram-transformer": {"max_length": 40, "frequency_stride": 4, "time_stride": 4},
    "bridgetower": {"hidden_size": 128}, "bridgetower_text_model": {"hidden_size": 128},
    "bridgetower_vision_model": {"hidden_size": 128},
    "bros": {"hidden_size": 64, "dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
    "depth_pro": {"patch_size": 16, "intermediate_hook_ids": [1, 0], "fusion_hidden_size": 16,
                  "intermediate_feature_dims": [16, 16], "scaled_images_feature_dims": [32, 32, 16],
                  "merge_padding_value": 1,
                  **{f"{part}_model_config": {"image_size": 16, "patch_size": 4} for part in ("image", "patch", "fov")}},
    "efficientloftr": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 512,
                       "stage_num_blocks": [1, 1, 1, 1], "num_attention_layers": 1},
    "fastspeech2_conformer_hifigan": {"model_in_dim": 16},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "pocket_tts": {"flow_head_config": {"condition_dim": 32}},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 32}},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "lilt": {"hidden_size": 48},
    "lw_detr_vit": {"num_windows": 4, "num_windows_side": 2, "window_block_indices": [0], "out_indices": [1, 2],
                    "pretrain_image_size": 32},
    "oneformer": {"task_seq_len": 7},
    "lw_detr": {"projector_scale_factors": [1.0], "projector_in_channels": [32], "num_feature_levels": 1},
    "align": {"projection_dim": 160},
    "align_vision_model": {"width_coefficient": 0.5, "depth_coefficient": 1.0},
    "clap_audio_model": {"depths": [1, 1, 1, 1], "patch_embeds_hidden_size": 16, "hidden_size": 128, "spec_size": 64,
                         "num_attention_heads": [2, 2, 2, 2], "window_size": 2, "num_hidden_layers": 4, "num_mel_bins": 32},
    "clvp_encoder": {"hidden_size": 128},
    "dia_decoder": {"cross_hidden_size": 32, "cross_head_dim": 8, "cross_num_attention_heads": 4,
                    "cross_num_key_value_heads": 4},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "mimi": {"vector_quantization_hidden_dimension": 32},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer_assistant": {"sliding_window": 64},
    "qwen3_asr_encoder": {"n_window": 16},
    **{f"{kind}_vision_model": SAM for kind in ("sam", "sam_hq")},
    **{f"{kind}_prompt_encoder": {"image_embedding_size": 4} for kind in ("sam", "sam_hq")},
    "sam2_hiera_det_model": {"hidden_size": 16, "num_attention_heads": 1, "image_size": [64, 64],
                             "embed_dim_per_stage": [16, 32, 64, 128], "blocks_per_stage": [1, 2, 2, 1],
                             "window_size_per_stage": [4, 2, 2, 2], "global_attention_blocks": [4],
                             "window_positional_embedding_background_size": [4, 4]},
    "sam2_vision_model": {"backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32,
                          "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sam3_vit_model": {"window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 32},
    "sam3_vision_model": {"fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "intermediate_hidden_state_indices": [0, 1],
               "merge_index": 0, "mlp_dim": 64},
    "swin2sr": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 1},
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8, "backbone_config": {
        "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "embedding_size": 8}},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 32, "pred_num_attention_heads": 4,
               "pred_num_hidden_layers": 2},
    "xclip_vision_model": {"mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_attention_heads": 4},
    "sam_hq": {"mask_decoder_config": {"vit_dim": 32}},
    "llama4_vision_model": {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32,
                            "vision_output_dim": 32},
    **{kind: {"image_token_index": 90, "num_query_tokens": 4} for kind in ("blip-2", "instructblip")},
    "kosmos-2": {"latent_query_num": 4},
    "emu3_vqgan": {"base_channels": 32, "num_res_blocks": 1, "codebook_size": 64},
    "chameleon": {"vocabulary_map": {"<image>": 90}}, "emu3": {"vocabulary_map": {"<image>": 90}},
}  # fmt: skip
NAMES = ("id2label", "label2id", "rope", "quantization", "text_encoder_rope")


def shrunk(data: dict, kinds: bool = True, own: dict | None = None) -> dict:
    """The keys of a config with small sizes. Of lists with an entry per layer two layers remain that differ most, or,
    without `kinds`, none: the class makes them anew."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    layers = next((data[k] for k in names if isinstance(data.get(k), int)), 0)
    layers = 0 if "depths" in data else layers  # of stages, as many as the lists say
    lists = {k: v for k, v in data.items() if isinstance(v, list) and layers > 2 and len(v) == layers}
    other = max(range(1, layers), key=lambda i: sum(v[i] != v[0] for v in lists.values())) if lists else 0
    out = {}
    for key, value in data.items():
        if key in DERIVED and "depths" not in data:
            continue
        if isinstance(value, dict) and "mrope_section" in value:
            out[key] = {**value, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
        elif isinstance(value, dict) and not str(key).startswith(NAMES):
            out[key] = shrunk(value, kinds)
        elif key == "image_grid_pinpoints":
            out[key] = [[32, 64], [64, 32], [64, 64]]
        elif key in SMALL and isinstance(value, int) and not isinstance(value, bool):
            out[key] = min(value, SMALL[key]) if value > 0 else value
        elif str(key).endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= 90:
            out[key] = SPECIAL.get(key.replace("_index", "_id"), 3)
        elif key in lists:
            if kinds:
                out[key] = [value[0], value[other]]
        else:
            out[key] = value
    heads = next((k for k in ("num_attention_heads", "n_heads", "num_heads") if isinstance(data.get(k), int)), None)
    if heads and data.get("num_key_value_heads") == data[heads]:
        out["num_key_value_heads"] = out[heads]
    name = str(data.get("model_type", ""))
    for key, value in {**OWN.get(name, {}), **(own or {})}.items():
        out[key] = {**out[key], **value} if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


# Tokens that stand for other inputs must differ from each other and from text.
SPECIAL = {"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92, "vision_start_token_id": 93,
           "vision_end_token_id": 94, "image_start_token_id": 95, "image_end_token_id": 96, "boi_token_id": 95,
           "eoi_token_id": 96, "mask_token_id": 97}  # fmt: skip


def made(torch: Any, cls: Any) -> tuple[Any, dict]:
    """A tiny random model of a class in eval mode, with noise on every parameter, and inputs that it takes."""
    data = cls.config_class().to_dict()
    errors = []
    for images, kinds in ((True, True), (True, False), (False, True), (False, False)):
        try:
            config = cls.config_class.from_dict(shrunk(data, kinds, OWN.get(cls.__name__)))
            with torch.device("meta"):
                parameters = sum(p.numel() for p in cls(config).parameters())
            if parameters > 100_000_000:
                raise ValueError(f"{parameters:,} parameters after shrinking")
            module = cls(config).eval()
            with torch.no_grad():
                for p in module.parameters():
                    if p.is_floating_point():
                        p.add_(torch.randn_like(p) * 0.05)
                given = inputs_for(torch, module, 2, 7, images)
                module(**given, **without_cache(module))
            return module, given
        except Exception as error:
            errors.append(error)
    raise errors[0]


def without_cache(module: Any) -> dict:
    return {"use_cache": False} if hasattr(module.config, "use_cache") else {}


def inputs_for(torch: Any, module: Any, rows: int, length: int, images: bool = True) -> dict:
    names = inspect.signature(module.forward).parameters
    config = module.config
    main = getattr(module, "main_input_name", "input_ids")
    text = getattr(config, "text_config", None) or config
    vocab = min(getattr(text, "vocab_size", None) or 90, 90)
    ids = lambda: torch.randint(4, vocab, (rows, length))
    if own := INPUTS.get(type(module).__name__):
        return own(Sizes(torch, config, rows, length))
    out = {}
    if "grid_thw" in names:
        first = next(n for n in names if n in ("hidden_states", "pixel_values"))
        found = next(pictures(torch, config, {"image_grid_thw"}, rows))
        out |= {first: found["pixel_values"], "grid_thw": found["image_grid_thw"]}
    elif "input_ids" not in names and (main == "pixel_values" or "pixel_values" in names):
        out["pixel_values"] = pixels(torch, config, rows)
        if "spatial_shapes" in names:  # patches of pictures of several sizes
            vision = getattr(config, "vision_config", config)
            wide = vision.num_channels * vision.patch_size**2
            out["pixel_values"] = torch.randn(rows, vision.num_patches, wide)
            out["pixel_attention_mask"] = torch.ones(rows, vision.num_patches, dtype=torch.long)
            out["spatial_shapes"] = torch.full((rows, 2), int(vision.num_patches**0.5))
    elif main in ("input_features", "input_values") and "input_ids" not in names:
        if "decoder_input_ids" in names:
            out["decoder_input_ids"] = ids()
        return sound(torch, module, main, out, rows, length)
    else:
        out["input_ids"] = ids()
        if "attention_mask" in names:
            out["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
            out["attention_mask"][-1, -2:] = 0
        if "pixel_values" in names and "get_text_features" in dir(module):
            out["pixel_values"] = pixels(torch, config, rows)
        elif images and "pixel_values" in names:
            shown = with_images(torch, module, out, rows)
            plain = main == "pixel_values" and not shown
            out |= {"pixel_values": pixels(torch, config, rows)} if plain else shown
        if "bbox" in names:
            out["bbox"] = torch.zeros(rows, length, 4, dtype=torch.float if config.model_type == "bros" else torch.long)
    if "decoder_input_ids" in names:
        out["decoder_input_ids"] = ids()
    if config.model_type.startswith("musicgen") and "input_ids" in out:  # its rows are those of the codebooks
        books = getattr(config, "decoder", config).num_codebooks
        out["input_ids"] = torch.randint(4, vocab, (rows * books, length))
    return out


def sound(torch: Any, module: Any, main: str, out: dict, rows: int, length: int) -> dict:
    """Sound in the first form that a class takes: waves with and without a channel, features by time and by frequency."""
    wide = getattr(module.config, "num_mel_bins", None) or getattr(module.config, "feature_size", None) or 16
    waves = ((rows, 400 + 40 * length), (rows, 1, 400 + 40 * length), (rows, 3840), (rows, 1, 3840))
    features = ((rows, wide, 64), (rows, 64, wide), (rows, 64, 80), (rows, 64, 128), (rows, 64, 160))
    masked = "input_features_mask" in inspect.signature(module.forward).parameters
    errors = []
    for shape in waves if main == "input_values" else features:
        for axis in (None, 1, 2) if masked else (None,):
            try:
                given = {**out, main: torch.randn(shape)}
                if axis is not None:
                    given["input_features_mask"] = torch.ones(rows, shape[axis], dtype=torch.long)
                with torch.no_grad():
                    module(**given, **without_cache(module))
                return given
            except Exception as error:
                errors.append(error)
    raise errors[1 if main == "input_values" else 0]


def with_images(torch: Any, module: Any, text: dict, rows: int) -> dict:
    """A picture a row and the tokens that stand for it, where a class reads pixels and nothing beside them."""
    token = next((t for k in ("image_token_id", "image_token_index") if (t := getattr(module.config, k, None))), None)
    read = getattr(module, "get_image_features", None)
    if token is None or read is None:
        return {}
    errors = []
    for given in pictures(torch, module.config, set(inspect.signature(read).parameters), rows):
        try:
            with torch.no_grad():
                found = read(**given)
            break
        except Exception as error:
            errors.append(error)
    else:
        raise errors[0]
    features = found if isinstance(found, (torch.Tensor, list, tuple)) else found.pooler_output
    parts = features if isinstance(features, (list, tuple)) else [features]
    each, rest = divmod(sum(f.shape[:-1].numel() for f in parts), rows)
    if rest:
        raise ValueError("as many features for each picture")
    put = lambda x, value: torch.cat([x[:, :1], torch.full((rows, each), value), x[:, 1:]], 1)
    words = torch.where(text["input_ids"] == token, text["input_ids"] + 1, text["input_ids"])
    out = {"input_ids": put(words, token), **given}
    if "attention_mask" in text:
        out["attention_mask"] = put(text["attention_mask"], 1)
    if "mm_token_type_ids" in inspect.signature(module.forward).parameters:
        out["mm_token_type_ids"] = (out["input_ids"] == token).long()
    return out


def pictures(torch: Any, config: Any, names: set[str], rows: int) -> Iterator[dict]:
    """A picture a row in the forms that transformers has: patches and their grid, the whole, the whole and its parts."""
    vision = getattr(config, "vision_config", None) or config
    of = lambda *keys: next((v for k in keys if isinstance(v := getattr(vision, k, None), int)), None)
    if "spatial_shapes" in names:
        wide = (of("num_channels") or 3) * (of("patch_size") or 8) ** 2
        mask, shapes = torch.ones(rows, 16, dtype=torch.long), torch.tensor([[4, 4]] * rows)
        yield {"pixel_values": torch.randn(rows, 16, wide), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    grid = next((n for n in names if n.startswith("image_grid")), None)
    if grid:
        wide, patch = of("in_channels", "in_chans", "num_channels") or 3, of("patch_size", "spatial_patch_size") or 8
        places = {grid: torch.tensor([[1, 4, 4]] * rows)}
        frames = of("temporal_patch_size", "patch_temporal") or 1
        yield {"pixel_values": torch.randn(rows * 16, wide * frames * patch**2), **places}
        yield {"pixel_values": torch.randn(rows * 16, wide * patch**2), **places}
        yield {"pixel_values": torch.randn(rows * 16, wide, patch, patch), **places}
    whole = pixels(torch, config, rows)
    sizes = {"image_sizes": torch.tensor([list(whole.shape[-2:])] * rows)} if "image_sizes" in names else {}
    yield {"pixel_values": whole, **sizes}
    for parts in (1, 2, 3, 5):
        yield {"pixel_values": torch.randn(rows, parts, *whole.shape[1:]), **sizes}


def pixels(torch: Any, config: Any, rows: int) -> Any:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    size = getattr(vision, "image_size", None) or 32
    size = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(rows, getattr(vision, "num_channels", None) or 3, *size)
