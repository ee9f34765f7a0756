"""What the values of an `adapter_config.json` must be, whatever the method."""

from __future__ import annotations

from ...core.schema import by_name, either, flag, many, maybe, pattern, real, whole, word

_NAMES = maybe(either(pattern, many(word), wanted="a regular expression or a list of names"))
_FLAG = maybe(flag)
_INDICES = many(whole())

FIELDS = {
    "peft_type": word,
    "task_type": maybe(word),
    "base_model_name_or_path": maybe(word),
    "r": whole(1),
    "lora_alpha": real(),
    "alpha": real(),
    "rank_pattern": maybe(by_name(whole(1), key=pattern)),
    "alpha_pattern": maybe(by_name(real(), key=pattern)),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "feedforward_modules": _NAMES,
    "target_parameters": _NAMES,
    "modules_to_save": maybe(many(pattern)),
    "layers_to_transform": maybe(either(whole(), _INDICES, wanted="the number of a layer or a list of such")),
    "layers_pattern": maybe(either(pattern, many(pattern), wanted="a name or a list of names")),
    "trainable_token_indices": maybe(
        either(_INDICES, by_name(_INDICES), wanted="a list of token ids, or such lists by the name of a module")
    ),
    "lora_dropout": maybe(real(0, 1)),
    "vera_dropout": maybe(real(0, 1)),
    "rank_dropout": maybe(real(0, 1)),
    "module_dropout": maybe(real(0, 1)),
    "bias": maybe(word),
    "init_lora_weights": maybe(either(flag, word, wanted="true, false or a name")),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
    "fan_in_fan_out": _FLAG,
    "inference_mode": _FLAG,
    "ensure_weight_tying": _FLAG,
    "decompose_both": _FLAG,
    "save_projection": _FLAG,
    "projection_prng_key": maybe(whole()),
    "num_virtual_tokens": whole(1),
    "token_dim": maybe(whole(1)),
    "num_layers": maybe(whole(1)),
    "num_attention_heads": maybe(whole(1)),
    "num_transformer_submodules": maybe(whole(1)),
    "decompose_factor": maybe(whole(-1)),
}
