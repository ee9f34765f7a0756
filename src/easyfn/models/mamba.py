"""Mamba (Gu and Dao 2023, arXiv 2312.00752): a selective scan in the place of attention and MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import CausalLM, MambaMixer, MixerModel
from ..registry.family import family


@dataclass(frozen=True)
class MambaConfig:
    """The keys of a Mamba `config.json`. A file's `intermediate_size` wins over `expand`, as in transformers."""

    model_type: ClassVar[str] = "mamba"
    vocab_size: int = 50280
    hidden_size: int = 768
    state_size: int = 16
    num_hidden_layers: int = 32
    expand: int = 2
    intermediate_size: int | None = None
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    layer_norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    time_step_rank: str | int = "auto"
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    initializer_range: float = 0.1
    tie_word_embeddings: bool = True
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()


def mamba(config: MambaConfig, **own: Any) -> MixerModel:
    """The model: a selective scan in every layer; `own` are further arguments of `nn.MambaMixer`."""
    c = config
    inner = c.intermediate_size or int(c.expand * c.hidden_size)
    mixer = lambda: MambaMixer(
        c.hidden_size,
        inner=inner,
        state=c.state_size,
        rank=math.ceil(c.hidden_size / 16) if c.time_step_rank == "auto" else int(c.time_step_rank),
        kernel=c.conv_kernel,
        bias=c.use_bias,
        conv_bias=c.use_conv_bias,
        act=c.hidden_act,
        steps=(c.time_step_min, c.time_step_max, c.time_step_floor),
        **own,
    )
    return MixerModel(c, mixer)


# Of the initialization, of kernels, and the names of the authors' own files.
IGNORED = (
    "time_step_scale",
    "time_step_init_scheme",
    "rescale_prenorm_residual",
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    "d_inner",
    "d_model",
    "n_layer",
    "rms_norm",
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "ssm_cfg",
)

family(
    "mamba",
    config=MambaConfig,
    tasks={"causal-lm": lambda c: CausalLM(mamba(c), tied=c.tie_word_embeddings), "base": mamba},
    architectures={"MambaForCausalLM": "causal-lm", "MambaModel": "base"},
    names=(rename("model.{rest}", "backbone.{rest}"),),
    aliases={"backbone.embeddings.weight": ("backbone.embedding.weight",)},  # the authors' own files
    ignore=IGNORED,
    prefix="backbone",
)
