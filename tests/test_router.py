"""Routers and experts against the reference's, one kind after the other; buffers are no weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef

HIDDEN, EXPERTS, TOKENS = 16, 12, 23


def filled(layer, module):
    """`layer` with the numbers of a torch module, all of them away from neutral; shapes must agree."""
    import torch

    torch.manual_seed(0)
    held = {}
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(torch.randn_like(value) * 0.3)
            held[name] = jnp.asarray(value.numpy())
    assert {k: v.shape for k, v in held.items()} == {k: v.shape for k, v in ef.params(layer).items()}
    return ef.with_params(ef.init(layer, key=jax.random.key(0)), held)


def by_expert(chosen, weights):
    """Weights as a table `(tokens, experts)`: the order of a token's experts is nobody's business."""
    chosen, weights = np.asarray(chosen), np.asarray(weights)
    table = np.zeros((len(chosen), EXPERTS), np.float32)
    np.put_along_axis(table, chosen, weights, axis=1)
    return table


def deepseek_v3(norm, groups):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    facts = dict(n_routed_experts=EXPERTS, num_experts_per_tok=3, hidden_size=HIDDEN, routed_scaling_factor=1.7)
    module = DeepseekV3TopkRouter(DeepseekV3Config(**facts, n_group=groups, topk_group=2, norm_topk_prob=norm))
    options = dict(correction=True, normalize=norm, score="sigmoid", groups=groups, topk_groups=2, scale=1.7)
    return module, ef.nn.Router(HIDDEN, EXPERTS, 3, **options, float32=True)


def deepseek_v2():
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    facts = dict(n_routed_experts=EXPERTS, num_experts_per_tok=3, hidden_size=HIDDEN, routed_scaling_factor=1.7)
    more = dict(topk_method="group_limited_greedy", n_group=4, topk_group=2, num_attention_heads=4)
    module = DeepseekV2TopkRouter(DeepseekV2Config(**facts, **more))
    return module, ef.nn.Router(HIDDEN, EXPERTS, 3, normalize=False, groups=4, topk_groups=2, best=1, scale=1.7)


def gpt_oss():
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    config = GptOssConfig(num_local_experts=EXPERTS, num_experts_per_tok=3, hidden_size=HIDDEN)
    return GptOssTopKRouter(config), ef.nn.Router(HIDDEN, EXPERTS, 3, bias=True)


def deepseek_v4():
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

    facts = dict(n_routed_experts=EXPERTS, num_experts_per_tok=3, hidden_size=HIDDEN, routed_scaling_factor=1.7)
    options = dict(correction=True, score="sqrtsoftplus", scale=1.7)
    return DeepseekV4TopKRouter(DeepseekV4Config(**facts)), ef.nn.Router(HIDDEN, EXPERTS, 3, **options)


ROUTERS = {
    "sigmoid in groups, normalized": lambda: deepseek_v3(True, 4),
    "sigmoid in groups": lambda: deepseek_v3(False, 3),
    "softmax in groups": deepseek_v2,
    "softmax of the chosen, with a bias": gpt_oss,
    "root of softplus": deepseek_v4,
}


@pytest.mark.quick("nn", "routers of each kind")
@pytest.mark.parametrize("kind", ROUTERS)
def test_routers(kind):
    import torch

    module, layer = ROUTERS[kind]()
    layer = filled(layer, module)
    x = np.random.RandomState(1).randn(TOKENS, HIDDEN).astype(np.float32)
    with torch.no_grad():
        logits, weights, chosen = module(torch.tensor(x))
    got = layer(jnp.asarray(x))
    np.testing.assert_allclose(got.logits, logits, atol=1e-5)
    np.testing.assert_allclose(by_expert(got.chosen, got.weights), by_expert(chosen, weights), atol=1e-5)


def test_experts_with_biases_and_a_clamped_gate():
    import torch
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(num_local_experts=EXPERTS, hidden_size=HIDDEN, intermediate_size=20, swiglu_limit=0.9)
    module = GptOssExperts(config)
    layer = ef.nn.Experts(
        EXPERTS, HIDDEN, 20, ef.nn.ClampedGate(0.9, 1.702, 1.0), bias=True, interleaved=True
    )  # the module holds (in, out)
    assert set(ef.params(layer)) == set(module.state_dict())
    torch.manual_seed(0)
    held = {k: torch.randn_like(v) for k, v in module.state_dict().items()}
    module.load_state_dict(held)
    ours = {k: jnp.asarray((v.swapaxes(-1, -2) if v.ndim == 3 else v).numpy()) for k, v in held.items()}
    layer = ef.with_params(ef.init(layer, key=jax.random.key(0)), ours)
    x = np.random.RandomState(1).randn(TOKENS, HIDDEN).astype(np.float32)
    weights, chosen = ef.nn.route(jax.random.normal(jax.random.key(1), (TOKENS, EXPERTS)), 3)
    with torch.no_grad():
        want = module(torch.tensor(x), torch.tensor(np.asarray(chosen)).long(), torch.tensor(np.asarray(weights)))
    np.testing.assert_allclose(layer(jnp.asarray(x), chosen, weights), want, atol=2e-5)


def test_weights_on_the_inputs(key):
    layer = ef.init(ef.nn.Experts(4, 8, 12, weigh_inputs=True), key=key)
    x = jax.random.normal(key, (2, 5, 8))
    weights, chosen = ef.nn.route(jax.random.normal(key, (2, 5, 4)), 2, score="sigmoid", normalize=False)
    want = jnp.zeros_like(x)
    for b, t, n in np.ndindex(2, 5, 2):
        e = chosen[b, t, n]
        gate, up = jnp.split(layer.gate_up_proj[e] @ (x[b, t] * weights[b, t, n]), 2)
        want = want.at[b, t].add(layer.down_proj[e] @ (jax.nn.silu(gate) * up))
    np.testing.assert_allclose(layer(x, chosen, weights), want, atol=1e-6)


@pytest.mark.quick("nn", "a buffer is no weight")
def test_a_buffer_is_no_weight(key):
    """Not trained, not decayed, not adapted, not quantized; but an array of the model like any other."""
    router = ef.init(ef.nn.Router(32, 8, 2, score="sigmoid", correction=True), key=key)
    router = ef.with_params(router, {"e_score_correction_bias": jnp.linspace(-1, 1, 8)})
    layer = ef.nn.SparseMoE(router, ef.init(ef.nn.Experts(8, 32, 32), key=key))
    assert not ef.trainable(layer).gate.e_score_correction_bias and ef.trainable(layer).gate.weight
    quantized = ef.quantize(layer, ef.QuantConfig("8bit", pattern=["all-linear", "gate.weight"]))
    adapted = ef.apply_lora(quantized, ["all-linear", "gate"], rank=2, key=key)
    kept = adapted.gate.e_score_correction_bias
    assert jnp.array_equal(kept, router.e_score_correction_bias) and "gate.e_score_correction_bias" in ef.params(layer)
    x = jax.random.normal(key, (3, 32))
    plain = router(x)
    np.testing.assert_allclose(jnp.sum(plain.weights, -1), 1.0, atol=1e-6)
    sizes = optax.adamw(1e-1, weight_decay=0.5).init(ef.split(layer, ef.trainable(layer))[0])
    assert len(jax.tree.leaves(sizes)) == 2 * 3 + 1  # two moments of three weights, and the count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "loudness"}, "no scores 'loudness'"),
        ({"groups": 5}, "in 5 groups"),
        ({"groups": 4, "topk_groups": 1}, "have fewer"),
        ({"groups": 12, "topk_groups": 12}, "no best 2"),
    ],
)
def test_impossible_routers(options, message):
    with pytest.raises(ValueError, match=message):
        ef.nn.Router(HIDDEN, EXPERTS, 4, **options)
