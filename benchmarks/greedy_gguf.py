"""llama.cpp on the files of `ef.save_gguf`: how many greedy tokens are ours, and how near the call was where one is not.

    npm install --prefix DIR -E --ignore-scripts node-llama-cpp@3.21.1
    python benchmarks/greedy_gguf.py DIR               # the formats, on examples/tiny
    python benchmarks/greedy_gguf.py DIR --families    # the architectures, on random models in float32; or some, by their configs

llama.cpp rounds what enters a product of its blocks to 8 bits, which easyfn does not: tokens may part where two are about
as likely.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

TINY, NEW = "examples/tiny", 24
PROMPTS = (
    "import os, sys\nfor name in",
    "class Node:\n    def __init__(self",
    "Return the number of",
    "if not isinstance(",
)
NODE = """
import {getLlama} from "node-llama-cpp"; import fs from "fs";
const asked = JSON.parse(fs.readFileSync(process.argv[2])), found = [];
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.file});
const cache = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const sequence = (await model.createContext({contextSize: 128, ...cache})).getSequence();
for (const ids of asked.ids) {
  await sequence.clearHistory();
  const out = [];
  for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
    out.push(token);
    if (out.length >= asked.count) break;
  }
  found.push(out);
}
console.log(JSON.stringify(found));
process.exit(0);
"""


def theirs(node: Path, file: Path, ids: list[list[int]]) -> list[list[int]]:
    """The greedy tokens of llama.cpp after each prompt."""
    script, asked = node / "greedy.mjs", file.with_suffix(".json")
    script.write_text(NODE)
    asked.write_text(json.dumps({"file": str(file), "ids": ids, "count": NEW}))
    done = subprocess.run(["node", script.name, str(asked)], cwd=node, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 2048}
FACTORS = {"short_factor": tuple(np.linspace(1, 2, 8)), "long_factor": tuple(np.linspace(2, 5, 8))}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}
ROUTED = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    **EXPERTS,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_chunk_size": 16}
NEMOTRON_H = {
    "head_dim": 16,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "time_step_min": 1e-30,  # llama.cpp has no least one
}
HALF = ef.Frozen(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
FAMILIES = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 32},
    "Qwen2MoeConfig": {"num_experts": 4, "shared_expert_intermediate_size": 64, "norm_topk_prob": False, **EXPERTS},
    "Qwen3MoeConfig": {"num_local_experts": 4, "head_dim": 32, "norm_topk_prob": True, **EXPERTS},
    "GemmaConfig": {"head_dim": 32},
    "Gemma2Config": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "Starcoder2Config": {"sliding_window": None, "use_bias": True},
    "NemotronConfig": {"head_dim": 16},
    "StableLmConfig": {"use_qkv_bias": True},
    "Phi3Config": {
        "original_max_position_embeddings": 2048,
        "pad_token_id": 1,
        "rope_parameters": ef.Frozen({**LONG, **FACTORS}),
    },
    "Olmo2Config": {},
    "GraniteConfig": GRANITE,
    "SeedOssConfig": {"head_dim": 32},
    "SmolLM3Config": {},
    "Cohere2Config": {"head_dim": 16, "sliding_window": 8},
    "Glm4Config": {"head_dim": 16},
    "GptOssConfig": {"head_dim": 32, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Lfm2Config": {"block_auto_adjust_ff_dim": False, "layer_types": ("conv", "full_attention", "conv")},
    "Lfm2MoeConfig": {
        "layer_types": ("conv", "full_attention", "conv"),
        "num_experts": 4,
        "num_dense_layers": 1,
        "tie_word_embeddings": True,
        **EXPERTS,
    },
    "DeepseekV2Config": {**LATENT, "q_lora_rank": 24, "n_routed_experts": 4, "n_shared_experts": 1, **EXPERTS},
    "DeepseekV3Config": {**LATENT, **ROUTED, "n_group": 2, "topk_group": 1, "rope_parameters": ef.Frozen(YARN)},
    "Glm4MoeLiteConfig": {**LATENT, **ROUTED},
    "FalconH1Config": {
        "head_dim": 16,
        **SSM,
        "mamba_d_ssm": 64,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "key_multiplier": 0.7,
        "attention_in_multiplier": 1.5,
        "attention_out_multiplier": 0.8,
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.6,
        "mlp_multipliers": (0.9, 1.1),
        "ssm_multipliers": (0.5, 1.5, 0.8, 1.2, 0.9),
    },
    "MambaConfig": {"intermediate_size": 128},
    "FalconMambaConfig": {"intermediate_size": 128},
    "Mamba2Config": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 16},
    "Exaone4Config": {"head_dim": 16, "sliding_window": None, "sliding_window_pattern": None},
    "FalconConfig": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "BloomConfig": {"n_layer": 3, "n_head": 4, "tie_word_embeddings": False},
    "JambaConfig": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "tie_word_embeddings": True,
    },
    "MiniMaxM2Config": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": HALF},
    "Glm4MoeConfig": {**ROUTED, "head_dim": 16, "use_qk_norm": True, "rope_parameters": HALF},
    "Ernie4_5Config": {"head_dim": 16},
    "Ernie4_5_MoeConfig": {"head_dim": 16, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "OlmoeConfig": {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoeConfig": {"num_local_experts": 4, **GRANITE},
    "GraniteMoeSharedConfig": {"num_local_experts": 4, "shared_intermediate_size": 48, **GRANITE},
    "GPTNeoXConfig": {},
    "Qwen3NextConfig": {
        "head_dim": 16,
        "full_attention_interval": 3,
        "num_experts": 4,
        "shared_expert_intermediate_size": 48,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": HALF,
        **EXPERTS,
    },
    "MptConfig": {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
    "NemotronHConfig": {
        "layers_block_type": ("linear_attention", "mlp", "full_attention", "linear_attention", "mlp"),
        "mlp_bias": True,
        **NEMOTRON_H,
    },
    "NemotronHConfig experts": {
        "layers_block_type": ("linear_attention", "moe", "full_attention", "linear_attention", "moe"),
        "moe_shared_expert_intermediate_size": 48,
        "moe_latent_size": 48,
        **ROUTED,
        **NEMOTRON_H,
    },
    "GPT2Config": {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4},
}


def drawn(name: str) -> Any:
    """A random model of an architecture, its norms and biases away from neutral."""
    config = getattr(ef.models, name.partition(" ")[0])
    known = {f.name for f in dataclasses.fields(config)}
    sizes = {key: value for key, value in {**SIZES, **FAMILIES[name]}.items() if key in known}
    model = ef.init(config(**sizes), key=jax.random.key(0))
    params = ef.params(model)
    keys = dict(zip(params, jax.random.split(jax.random.key(7), len(params)), strict=True))
    return ef.with_params(model, {p: v + 0.15 * jax.random.normal(keys[p], v.shape) for p, v in params.items()})


def families(node: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 1000, length).tolist() for length in (5, 12, 20)]
    print("| architecture | greedy tokens that are the same until the first that is not |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[3:] or FAMILIES:
            model = drawn(name)
            # llama.cpp looks for tokens of its own where a file's name is phi3.
            file = ef.save_gguf(model, Path(folder) / "m.gguf", tokenizer=TINY, metadata={"general.name": "x"})
            found = theirs(node, file, ids)
            longest = max(len(prompt) + len(other) for prompt, other in zip(ids, found, strict=True))
            rows = [prompt + other for prompt, other in zip(ids, found, strict=True)]
            rows = jnp.asarray([row + [0] * (longest - len(row)) for row in rows])
            # The best token after each of theirs: what greedy generation takes until the first that differs.
            best = np.asarray(jax.jit(lambda x, m=model: jnp.argmax(ef.forward(m, x).logits, -1))(rows))
            same = total = 0
            for mine, prompt, other in zip(best, ids, found, strict=True):
                equal = mine[len(prompt) - 1 : len(prompt) - 1 + len(other)] == np.asarray(other)
                same += len(other) if equal.all() else int(equal.argmin())
                total += len(other)
            print(f"| {name.replace('Config', '')} | {same} of {total} |", flush=True)


def main() -> None:
    if "--families" in sys.argv:
        return families(Path(sys.argv[1]).resolve())
    model, tokenizer = ef.load(TINY, dtype="float32", progress=False), ef.tokenizer(TINY)
    ids = [tokenizer.encode(text).ids for text in PROMPTS]
    print(
        "| file | greedy tokens that are the same | gaps of the two best logits where the first is not |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, what, kind in (
            ("float32", model, None),
            *((kind, model, kind) for kind in ("Q8_0", "Q4_0", "Q4_K")),
            ("nf4, rounded to Q4_K", ef.quantize(model, "nf4"), "Q4_K"),
        ):
            file = ef.save_gguf(what, Path(folder) / "model.gguf", kind=kind, tokenizer=TINY)
            read, same, gaps = ef.load(file, dtype="float32", progress=False), 0, []
            for prompt, other in zip(ids, theirs(Path(sys.argv[1]).resolve(), file, ids), strict=True):
                mine = ef.generate(read, jnp.asarray([prompt]), max_new_tokens=NEW, do_sample=False).sequences
                mine = np.asarray(mine)[0, len(prompt) :].tolist()[: len(other)]
                first = next((n for n, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(other))
                same += first
                if first < len(other):
                    logits = np.sort(ef.forward(read, jnp.asarray([prompt + mine[:first]])).logits[0, -1])
                    gaps.append(f"{logits[-1] - logits[-2]:.3f}")
            print(f"| {name} | {same} of {NEW * len(ids)} | {', '.join(gaps)} |", flush=True)


if __name__ == "__main__":
    main()
