"""Latent attention beside transformers': the layer of DeepSeek-V2 and V3, and a whole model that generates with it."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import reference, tokens
from easyfn.core.frozen import Frozen
from easyfn.nn import Block, Decoder, GatedMLP, LatentAttention, RMSNorm

SIZES: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=64,
    kv_lora_rank=20,
    qk_nope_head_dim=10,
    qk_rope_head_dim=8,
    v_head_dim=12,
    first_k_dense_replace=2,  # no experts
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "v3": {"q_lora_rank": 14, "rope_interleave": True, "attention_bias": True},
    "v3-halves": {"q_lora_rank": None, "rope_interleave": False},
    "v3-yarn": {"q_lora_rank": 14, "rope_interleave": True, "rope_parameters": YARN},
    "v2": {"q_lora_rank": None},
}


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Of DeepSeek's keys those that a model without experts needs."""

    model_type: ClassVar[str] = "latent-test"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_parameters: Frozen
    rope_interleave: bool = True
    attention_bias: bool = False
    rms_norm_eps: float = 1e-6
    eos_token_id: int | None = None
    pad_token_id: int | None = None


def base(c: LatentConfig) -> Decoder:
    scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5
    if c.rope_parameters.get("mscale_all_dim"):
        scale *= (0.1 * c.rope_parameters["mscale_all_dim"] * np.log(c.rope_parameters["factor"]) + 1.0) ** 2
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps)

    def attention() -> LatentAttention:
        return LatentAttention(
            c.hidden_size,
            c.num_attention_heads,
            q_lora_rank=c.q_lora_rank,
            kv_lora_rank=c.kv_lora_rank,
            qk_nope_head_dim=c.qk_nope_head_dim,
            qk_rope_head_dim=c.qk_rope_head_dim,
            v_head_dim=c.v_head_dim,
            bias=c.attention_bias,
            scale=float(scale),
            interleaved=c.rope_interleave,
        )

    layers = [
        Block(attention(), GatedMLP(c.hidden_size, c.intermediate_size, "silu"), norm(), norm())
        for _ in range(c.num_hidden_layers)
    ]
    return Decoder(c, layers, norm(), head_dim=c.qk_rope_head_dim, rope={"default": dict(c.rope_parameters)})


ef.family(
    "latent-test",
    config=LatentConfig,
    tasks={"causal-lm": lambda c: ef.nn.CausalLM(base(c), tied=False)},
    architectures={"LatentTest": "causal-lm"},
)


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    import transformers

    version = "V2" if request.param == "v2" else "V3"
    more = {"n_routed_experts": 2, "num_experts_per_tok": 1, **SIZES, **KINDS[request.param]}
    if version == "V2":
        more["head_dim"] = more["qk_rope_head_dim"]
    hf = reference(
        getattr(transformers, f"Deepseek{version}ForCausalLM"),
        getattr(transformers, f"Deepseek{version}Config")(**more),
    )
    names = [f.name for f in dataclasses.fields(LatentConfig)]
    said = {name: getattr(hf.config, name) for name in names if hasattr(hf.config, name)}
    config = LatentConfig(**{**said, "rope_parameters": Frozen(hf.config.rope_parameters)})
    return request.param, ef.from_state_dict(config, hf.state_dict()), hf


run = jax.jit(ef.forward, static_argnames=("fresh", "output_attentions"))


def close(got, want, mask):
    np.testing.assert_allclose(np.asarray(got)[mask > 0], want[mask > 0], atol=1e-5 * max(1.0, np.abs(want).max()))


def theirs(hf, ids, mask):
    import torch

    at = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.no_grad():
        out = hf(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=at, output_attentions=True)
    return out.logits.numpy(), out.attentions[0].numpy()


def test_prompt_and_cache_are_transformers(pair):
    _, model, hf = pair
    ids, mask = tokens(3, 14)
    want, attentions = theirs(hf, ids, mask)
    plain = run(model, ids, attention_mask=mask, output_attentions=True)
    close(plain.logits, want, mask)
    cache, parts = ef.init_cache(model, 3, 20), []
    for start, stop in ((0, 6), (6, 11), (11, 12), (12, 13), (13, 14)):
        part = slice(start, stop)
        out = run(
            model,
            ids[:, part],
            attention_mask=mask[:, part],
            cache=cache,
            fresh=start == 0,
            output_attentions=stop > 12,
        )
        cache = out.cache
        parts.append(out.logits)
    close(jnp.concatenate(parts, axis=1), want, mask)
    np.testing.assert_allclose(out.attentions[0][2, :, 0, :14], attentions[2, :, -1], atol=1e-5)


def test_greedy_is_transformers(pair):
    import torch

    name, model, hf = pair
    if name != "v3":
        pytest.skip("generation does not know the kind")
    ids, mask = tokens(3, 9)
    ids, mask = np.where(mask > 0, ids, 0)[:2:2], mask[:2:2]  # the row padded on the left
    options = {"max_new_tokens": 8, "eos_token_id": -1, "repetition_penalty": 1.3}
    with torch.no_grad():
        want = hf.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, pad_token_id=0, **options
        ).numpy()
    give = lambda model, **more: ef.generate(model, ids, attention_mask=mask, **options, **more).sequences
    np.testing.assert_array_equal(give(model), want)
    np.testing.assert_array_equal(give(ef.stack(model), cache_implementation="quantized"), want)
    np.testing.assert_array_equal(give(model, prompt_lookup_num_tokens=2), want)


@pytest.mark.quick("nn", "latent attention keeps a small cache")
def test_the_cache_is_small_and_stays_where_it_is(pair):
    name, model, _ = pair
    if name != "v3":
        pytest.skip("one is proof")
    cache = ef.init_cache(model, 2, 4096)
    held = ef.num_bytes(cache.layers)
    assert held == 2 * 2 * 4096 * (20 + 8) * 4
    token = jnp.zeros((2,), jnp.int32)
    step = jax.jit(ef.decode_step, donate_argnums=2).lower(model, token, cache).compile()
    assert step.memory_analysis().temp_size_in_bytes < 0.5 * held  # scores of 6 heads, and no head's keys
    assert not any(f"{n},4096,10]" in step.as_text() for n in (6, 12))
