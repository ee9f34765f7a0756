"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060): no attention, a state of fixed size in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import CausalLM, GatedRMSNorm, Mamba2Mixer, MixerModel
from ..registry.family import family


@dataclass(frozen=True)
class Mamba2Config:
    """The keys of a Mamba-2 `config.json`."""

    model_type: ClassVar[str] = "mamba2"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    head_dim: int
    state_size: int = 128
    expand: int = 2
    conv_kernel: int = 4
    n_groups: int = 8
    chunk_size: int = 256
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    layer_norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    initializer_range: float = 0.1
    tie_word_embeddings: bool = False
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    def __post_init__(self) -> None:
        if self.hidden_size * self.expand != self.num_heads * self.head_dim:
            raise ValueError(
                f"mamba2: hidden_size * expand = {self.hidden_size * self.expand} must equal "
                f"num_heads * head_dim = {self.num_heads * self.head_dim}"
            )
        if self.num_heads % self.n_groups:
            raise ValueError(f"mamba2: num_heads={self.num_heads} is no multiple of n_groups={self.n_groups}")
        if self.conv_kernel < 1 or self.chunk_size < 1:
            raise ValueError(
                f"mamba2: conv_kernel={self.conv_kernel} and chunk_size={self.chunk_size} must be positive"
            )


def mixer(config: Mamba2Config) -> Mamba2Mixer:
    """The recurrence of a layer."""
    c = config
    return Mamba2Mixer(
        c.hidden_size,
        heads=c.num_heads,
        head_dim=c.head_dim,
        state=c.state_size,
        groups=c.n_groups,
        kernel=c.conv_kernel,
        chunk=c.chunk_size,
        bias=c.use_bias,
        conv_bias=c.use_conv_bias,
        act=c.hidden_act,
        norm=GatedRMSNorm(c.num_heads * c.head_dim, c.n_groups, c.layer_norm_epsilon),
        limit=c.time_step_limit,
        steps=(c.time_step_min, c.time_step_max, c.time_step_floor),
    )


def mamba2(config: Mamba2Config) -> MixerModel:
    """Embeddings, blocks, a final norm."""
    return MixerModel(config, lambda: mixer(config))


family(
    "mamba2",
    config=Mamba2Config,
    tasks={
        "causal-lm": lambda c: CausalLM(mamba2(c), tied=c.tie_word_embeddings),
        "base": mamba2,
    },
    architectures={"Mamba2ForCausalLM": "causal-lm", "Mamba2Model": "base"},
    names=(rename("model.{rest}", "backbone.{rest}"),),
    aliases={"backbone.embeddings.weight": ("backbone.embedding.weight",)},  # the authors' own files
    # Most of them stand in older files, of Mamba 1 or its trainers, and transformers never reads them.
    ignore=(
        "intermediate_size",
        "norm_before_gate",
        "rescale_prenorm_residual",
        "rms_norm",
        "time_step_init_scheme",
        "time_step_rank",
        "time_step_scale",
        "use_mambapy",
    ),
    prefix="backbone",
)
