"""BEiT (Bao et al. 2021, arXiv 2106.08254): a ViT with a bias for each offset of two patches, trained to fill masked ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import PatchFields, Size
from ..core.weight import Slot, Weight, dense, slots, take
from ..names.rules import Rule, rename
from ..nn import MLP, Context, LayerNorm
from ..nn.image_heads import ImageClassifier, MaskedPatches
from ..nn.linear import declare
from ..nn.resize import resize_grid
from ..nn.vision import ClassTokens, EncoderBlock, FirstToken, ImageEncoder, SelfAttention, pair
from ..registry.family import family
from .vision import BACKBONE, LEGACY, MODULES, block_names, head_names


@dataclass(frozen=True, kw_only=True)
class BeitConfig(PatchFields):
    """The keys of a BEiT `config.json`; those of its head for segmentation are carried along."""

    model_type: ClassVar[str] = "beit"
    vocab_size: Size = 8192
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float | int = 0.1
    drop_path_rate: float | int = 0.1
    use_mean_pooling: bool = True


class OffsetBias(eqx.Module):
    """A bias on attention scores for each offset of two patches, and three for a class token: it looks, is looked at, and both.

    `(1, heads, tokens, tokens)` for a grid of patches; the table is resampled for one of another size.
    """

    relative_position_bias_table: Weight  # [offsets + 3, heads]
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        self.relative_position_bias_table = declare((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads)
        self.grid = grid

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        rows, columns = grid
        table = dense(self.relative_position_bias_table)
        # transformers reads the table as (width, height): of an oblong model it resamples what needs it not.
        old, new = (2 * self.grid[1] - 1, 2 * self.grid[0] - 1), (2 * rows - 1, 2 * columns - 1)
        table = jnp.concatenate([resize_grid(table[:-3], old, new, method="bilinear"), table[-3:]])
        places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        offset = places[:, None] - places[None] + [rows - 1, columns - 1]
        index = np.pad(offset[..., 0] * new[1] + offset[..., 1], ((1, 0), (1, 0)))
        index[0], index[1:, 0], index[0, 0] = new[0] * new[1], new[0] * new[1] + 1, new[0] * new[1] + 2
        return jnp.moveaxis(take(table, jnp.asarray(index)), -1, 0)[None]


@slots.register(OffsetBias)
def _(layer: OffsetBias) -> dict[str, Slot]:
    return {"relative_position_bias_table": Slot("other", (None, "heads"), "zeros")}


class BeitTokens(eqx.Module):
    """A class token and patches; and for the layers the grid that the patches make and the bias that all share."""

    tokens: ClassTokens
    shared_position_bias: OffsetBias | None

    def __init__(self, c: BeitConfig) -> None:
        mask = (1, 1, c.hidden_size) if c.use_mask_token else None
        self.tokens = ClassTokens(c, mask_token=mask, positions=c.use_absolute_position_embeddings)
        shared = c.use_shared_relative_position_bias
        self.shared_position_bias = OffsetBias(self.tokens.grid, c.num_attention_heads) if shared else None

    @property
    def mask_token(self) -> Weight | None:
        return self.tokens.mask_token

    def __call__(
        self, context: Context, pixel_values: jax.Array, bool_masked_pos: Any = None, interpolate: bool = False
    ) -> tuple[jax.Array, Context]:
        # Images of any size are taken without being told.
        x, context = self.tokens(context, pixel_values, bool_masked_pos, True)
        rows, columns = (n // p for n, p in zip(pixel_values.shape[2:], self.tokens.patch, strict=True))
        bias = None if self.shared_position_bias is None else self.shared_position_bias((rows, columns))
        return x, context.replace(bias=bias, groups={"patches": jnp.zeros((rows, columns), jnp.int32)})


class BeitAttention(eqx.Module):
    """Attention with the bias that all layers share and, where there is a table, one of the layer's own."""

    attention: SelfAttention
    relative_position_bias: OffsetBias | None

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        if self.relative_position_bias is not None:
            assert context.groups is not None
            rows, columns = context.groups["patches"].shape
            own = self.relative_position_bias((rows, columns))
            context = context.replace(bias=own if context.bias is None else own + context.bias)
        return self.attention(x, context)


class MeanOfPatches(eqx.Module):
    """A pooler: the norm of the mean of all patches."""

    layernorm: LayerNorm

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layernorm(jnp.mean(x[:, 1:].astype(jnp.float32), axis=1).astype(x.dtype))


class Unchanged(eqx.Module):
    """Where another model has a last norm, and this one's is in its pooler."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def beit(c: BeitConfig, *, pooler: bool = True) -> ImageEncoder:
    """The encoder; with a mean of patches as its answer there is no norm behind the layers, but one of that mean."""
    image, patch = pair(c.image_size), pair(c.patch_size)
    grid = (image[0] // patch[0], image[1] // patch[1])
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)

    def block(i: int) -> EncoderBlock:
        own = OffsetBias(grid, c.num_attention_heads) if c.use_relative_position_bias else None
        attention = SelfAttention(
            c.hidden_size,
            c.num_attention_heads,
            bias=(True, False, True, True),
            dropout=c.attention_probs_dropout_prob,
        )
        return EncoderBlock(
            c.hidden_size,
            BeitAttention(attention, own),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True),
            c.layer_norm_eps,
            scale=c.layer_scale_init_value if c.layer_scale_init_value > 0 else None,
            dropout=c.hidden_dropout_prob,
            drop_path=c.drop_path_rate * i / max(c.num_hidden_layers - 1, 1),
        )

    layers = [block(i) for i in range(c.num_hidden_layers)]
    pooled = (MeanOfPatches(norm()) if c.use_mean_pooling else FirstToken()) if pooler else None
    last = Unchanged() if c.use_mean_pooling else norm()
    return ImageEncoder(c, BeitTokens(c), layers, pooler=pooled, norm=last, interpolate=True)


TABLE = "relative_position_bias.relative_position_bias_table"


def _rules(layers: str, attention: dict[str, str], own: str, shared: str) -> list[Rule]:
    """`layers` are theirs, `attention` the parts of a block, `own` and `shared` the tables of offsets."""
    inside = {k.replace("attention.", "attention.attention.", 1): v for k, v in attention.items()}
    scales = [rename(f"layers.{{i}}.layer_scale{n}.lambda1", f"{layers}.{{i}}.lambda_{n}") for n in (1, 2)]
    return [
        *scales,
        rename(f"layers.{{i}}.attention.{TABLE}", f"{layers}.{{i}}.{own}"),
        rename("embeddings.shared_position_bias.relative_position_bias_table", shared),
        rename("embeddings.tokens.{rest}", "embeddings.{rest}"),
        *block_names("layers", layers, inside),
    ]


MODULE_PARTS = {**MODULES, **{f"attention.{p}_proj": f"attention.{p}_proj" for p in "qkvo"}}
family(
    "beit",
    config=BeitConfig,
    tasks={
        "base": beit,
        "image-classification": lambda c: ImageClassifier(beit(c), pooling="pooler"),
        "masked-image-modeling": lambda c: MaskedPatches(beit(c, pooler=False)),
    },
    architectures={
        "BeitModel": "base",
        "BeitForImageClassification": "image-classification",
        "BeitForMaskedImageModeling": "masked-image-modeling",
    },
    names=lambda model: head_names(
        model,
        ImageEncoder,
        _rules("encoder.layer", LEGACY, f"attention.attention.{TABLE}", f"encoder.{TABLE}"),
        "beit",
    ),
    modules=lambda model: head_names(
        model,
        ImageEncoder,
        _rules("layers", MODULE_PARTS, TABLE, "shared_position_bias.relative_position_bias_table"),
        "beit",
    ),
    # of the backbone, and of the head for segmentation
    ignore=(
        *BACKBONE,
        "segmentation_indices",
        "reshape_hidden_states",
        "add_fpn",
        "pool_scales",
        "use_auxiliary_head",
        "auxiliary_loss_weight",
        "auxiliary_channels",
        "auxiliary_num_convs",
        "auxiliary_concat_input",
        "semantic_loss_ignore_index",
    ),
    ignore_tensors=(r"relative_position_index$",),
    prefix="beit",
)
