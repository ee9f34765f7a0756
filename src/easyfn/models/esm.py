"""ESM-2 (Lin et al. 2022): a pre-norm encoder of proteins, and the contacts of residues that its attention shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import labels, only
from ..config.fields import CommonFields, Size, head_dim
from ..core.weight import HALF, Slot, Weight, dense, slots
from ..nn import Block, Context, Embedding, LayerNorm, Linear, MaskedLM, Output, TextEncoder
from ..nn.encoder import learned_positions
from ..nn.fold import fold
from ..nn.linear import along_last, declare, pad_token
from .encoders import BUFFERS, IGNORED, encoder_family, pre_norm_layer, pre_norm_names

MASKED_IN_TRAINING = 0.15 * 0.8  # the share of tokens that were `<mask>` when ESM was trained


@dataclass(frozen=True, kw_only=True)
class EsmConfig(CommonFields):
    """The keys of an ESM `config.json`; ESMFold, a model of another kind, is refused."""

    model_type: ClassVar[str] = "esm"
    vocab_size: Size
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | None = 2
    hidden_size: Size = 768
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: Size = 1026
    rope_theta: float | int = 10000.0
    layer_norm_eps: float = 1e-12
    position_embedding_type: Literal["absolute", "rotary"] = "absolute"
    emb_layer_norm_before: bool | None = None
    token_dropout: bool | None = False
    tie_word_embeddings: bool = True
    head_dropout = property(lambda c: c.hidden_dropout_prob)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        for key in ("is_decoder", "add_cross_attention", "is_folding_model"):
            only(data, key, False)
        return labels(data)


class EsmEmbeddings(eqx.Module):
    """Words, their positions and a norm, where the config has those; padding is zero.

    With `mask`, the id of `<mask>`, such tokens are zero and the rest is scaled by the share of them in training over that
    in the row's document. `inputs_embeds` are what all this makes of ids, as in transformers: nothing is added to them.
    """

    word_embeddings: Embedding
    position_embeddings: Embedding | None
    layer_norm: LayerNorm | None
    padding: int | None = eqx.field(static=True)
    mask: int | None = eqx.field(static=True)

    def __init__(self, c: EsmConfig) -> None:
        learned = c.position_embedding_type == "absolute"
        if learned and c.pad_token_id is None:
            raise ValueError("esm: position_embedding_type='absolute' needs pad_token_id, after which positions begin")
        if c.token_dropout and c.mask_token_id is None:
            raise ValueError("esm: token_dropout=True needs mask_token_id, the tokens that are dropped")
        self.word_embeddings = Embedding(c.vocab_size, c.hidden_size, padding=pad_token(c))
        rows = c.max_position_embeddings
        self.position_embeddings = Embedding(rows, c.hidden_size, axes=(None, "embed")) if learned else None
        self.layer_norm = LayerNorm(c.hidden_size, c.layer_norm_eps) if c.emb_layer_norm_before else None
        self.padding = c.pad_token_id if learned else None
        self.mask = c.mask_token_id if c.token_dropout else None

    def __call__(
        self, context: Context, input_ids: Any, inputs_embeds: jax.Array | None, token_type_ids: Any = None
    ) -> jax.Array:
        if token_type_ids is not None:
            raise TypeError("forward: ESM has no token_type_ids")
        if inputs_embeds is not None:
            return inputs_embeds
        x = self.word_embeddings(input_ids)
        if self.mask is not None:
            masked = jnp.asarray(input_ids) == self.mask
            left = (1 - MASKED_IN_TRAINING) / (1 - share(masked, context.segment_ids))
            x = jnp.where(masked[..., None], 0.0, x * left[..., None]).astype(x.dtype)
        if self.position_embeddings is not None:
            x = x + learned_positions(self.position_embeddings, context.position_ids)
        x = x if self.layer_norm is None else self.layer_norm(x)
        return jnp.where((context.segment_ids > 0)[..., None], x, jnp.zeros((), x.dtype))


def share(chosen: jax.Array, segments: jax.Array) -> jax.Array:
    """Of each token, which share of its document's tokens is `chosen`; float32 `(batch, seq)`, 0 for padding."""
    real = segments > 0
    together = (segments[:, :, None] == segments[:, None, :]) & real[:, None, :]
    count = jnp.sum(together & chosen[:, None, :], axis=2, dtype=jnp.float32)
    return jnp.where(real, count / jnp.maximum(jnp.sum(together, axis=2, dtype=jnp.float32), 1), 0)


class Frequencies(eqx.Module):
    """The inverse frequencies of the rotation, `(head_dim / 2,)`, which files hold as they were in training: in float16."""

    inv_freq: Weight
    theta: float = eqx.field(static=True)

    def __init__(self, dim: int, theta: float) -> None:
        self.inv_freq = declare(dim // 2)
        self.theta = theta

    def __call__(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """cos and sin, `(batch, seq, head_dim / 2)` in float32."""
        rates = dense(self.inv_freq).astype(jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * along_last(rates, positions[..., None])
        return jnp.cos(angles), jnp.sin(angles)


@slots.register(Frequencies)
def _(layer: Frequencies) -> dict[str, Slot]:
    def rates(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return (layer.theta ** -(jnp.arange(shape[0]) / shape[0])).astype(dtype)

    return {"inv_freq": Slot("buffer", (None,), rates, HALF)}


class ContactHead(eqx.Module):
    """How likely two residues touch, of the attention between them; see [`easyfn.models.esm.predict_contacts`][]."""

    regression: Linear

    def __init__(self, features: int) -> None:
        self.regression = Linear(features, 1, True, axes=(None, None), role="head")

    def __call__(self, attentions: jax.Array) -> jax.Array:
        """`(batch, features, seq, seq)` to probabilities `(batch, seq, seq)`."""
        both = attentions + jnp.swapaxes(attentions, -1, -2)
        rows = jnp.sum(both, axis=-1, keepdims=True)
        total = jnp.sum(rows, axis=-2, keepdims=True)
        # What two residues would share if neither preferred the other (Dunn et al. 2008) is no contact.
        expected = rows * jnp.swapaxes(rows, -1, -2) / jnp.where(total == 0, 1, total)
        return jax.nn.sigmoid(self.regression(jnp.moveaxis(both - expected, 1, -1))[..., 0])


class EsmLayers(eqx.Module):
    """The layers, under one rotation where positions are rotary; and the head that reads their attention."""

    layer: tuple[Block, ...]
    rotary_embeddings: Frequencies | None
    contact_head: ContactHead

    def __init__(self, c: EsmConfig) -> None:
        rotary = c.position_embedding_type == "rotary"
        rope = "default" if rotary else None
        self.layer = tuple(pre_norm_layer(c, act="gelu", rope=rope) for _ in range(c.num_hidden_layers))
        self.rotary_embeddings = Frequencies(head_dim(c), c.rope_theta) if rotary else None
        self.contact_head = ContactHead(c.num_hidden_layers * c.num_attention_heads)

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        if self.rotary_embeddings is not None:
            context = context.replace(rope={"default": self.rotary_embeddings(context.position_ids)})
        x, _, trace = fold(self.layer, x, context)
        return x, trace


def esm(c: EsmConfig, *, pooler: bool) -> TextEncoder:
    """The encoder."""
    norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
    return TextEncoder(c, pooler=pooler, embeddings=EsmEmbeddings(c), layers=EsmLayers(c), norm=norm)


def predict_contacts(model: Any, input_ids: Any, attention_mask: Any = None) -> jax.Array:
    """The probability that two residues of a protein touch, `(batch, seq - 2, seq - 2)`, as transformers' method of that name.

    `model` is an ESM model with any head. The first and the last place of a row, `<cls>` and `<eos>`, are left out;
    `<eos>` before padding and padding itself take no part.

    ```python
    import jax, easyfn as ef
    from easyfn.models.esm import predict_contacts
    config = ef.models.EsmConfig(vocab_size=33, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
                                 intermediate_size=40, pad_token_id=1)
    model = ef.init(config, key=jax.random.key(0))
    assert predict_contacts(model, jax.numpy.array([[0, 5, 6, 7, 2]])).shape == (1, 3, 3)
    ```
    """
    from ..core.tree import nodes
    from ..forward.forward import forward

    head = next((node for _, node in nodes(model) if isinstance(node, ContactHead)), None)
    if head is None:
        raise TypeError(f"predict_contacts: {type(model).__name__} is no ESM model: it has no contact head")
    ids = jnp.asarray(input_ids)
    out: Output = forward(model, ids, attention_mask=attention_mask, output_attentions=True)
    assert out.attentions is not None
    seen = jnp.ones(ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
    first = (jnp.cumsum(seen, axis=1) == 1) & seen  # <cls>, behind padding on the left
    seen = seen & ~first & (ids != model.config.eos_token_id)
    found = jnp.concatenate(out.attentions, axis=1).astype(jnp.float32)
    found = jnp.where((seen[:, :, None] & seen[:, None, :])[:, None], found, 0)
    return head(found[..., 1:-1, 1:-1])


FREQUENCIES = "rotary_embeddings.inv_freq"
encoder_family(
    "Esm",
    EsmConfig,
    esm,
    prefix="esm",
    lm_head=lambda c: MaskedLM(esm(c, pooler=False), tied=c.tie_word_embeddings, act="gelu", bias="apart"),
    lacks=("question-answering", "multiple-choice"),
    layers=[
        *pre_norm_names("attention.LayerNorm", "LayerNorm"),
        ("encoder.rotary_embeddings.{rest}", "rotary_embeddings.{rest}"),
        ("encoder.contact_head.{rest}", "contact_head.{rest}"),
        ("norm.{rest}", "encoder.emb_layer_norm_after.{rest}"),
    ],
    # Files hold the frequencies of every layer, which are alike, or (transformers 5.24) once, under a name with a star.
    aliases={
        f"{prefix}{FREQUENCIES}": tuple(f"{prefix}encoder.layer.{n}.attention.self.{FREQUENCIES}" for n in "0*")
        for prefix in ("", "esm.")
    },
    optional=(r"rotary_embeddings\.inv_freq$",),
    ignore=(*IGNORED[1:], "is_folding_model", "esmfold_config", "vocab_list", "hidden_act", "classifier_dropout"),
    ignore_tensors=(*BUFFERS, r"attention\.self\.rotary_embeddings\.inv_freq$"),
)
