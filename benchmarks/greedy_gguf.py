"""llama.cpp on the files of `ef.save_gguf`: how many greedy tokens are ours, and how near the call was where one is not.

    npm install --prefix DIR -E --ignore-scripts node-llama-cpp@3.21.1
    python benchmarks/greedy_gguf.py DIR               # the formats, on examples/tiny
    python benchmarks/greedy_gguf.py DIR --families    # the architectures, on random models in float32

llama.cpp rounds what enters a product of its blocks to 8 bits, which easyfn does not: tokens may part where two are about
as likely.
"""

from __future__ import annotations

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
const sequence = (await model.createContext({contextSize: 128})).getSequence();
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
    "GraniteConfig": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "SeedOssConfig": {"head_dim": 32},
    "SmolLM3Config": {},
    "Cohere2Config": {"head_dim": 16, "sliding_window": 8},
    "Glm4Config": {"head_dim": 16},
}


def drawn(name: str) -> Any:
    """A random model of an architecture, its norms and biases away from neutral."""
    model = ef.init(getattr(ef.models, name)(**{**SIZES, **FAMILIES[name]}), key=jax.random.key(0))
    params = ef.params(model)
    keys = dict(zip(params, jax.random.split(jax.random.key(7), len(params)), strict=True))
    return ef.with_params(model, {p: v + 0.15 * jax.random.normal(keys[p], v.shape) for p, v in params.items()})


def families(node: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 1000, length).tolist() for length in (5, 12, 20)]
    print("| architecture | greedy tokens that are the same until the first that is not |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            model = drawn(name)
            # llama.cpp looks for tokens of its own where a file's name is phi3.
            file = ef.save_gguf(model, Path(folder) / "m.gguf", tokenizer=TINY, metadata={"general.name": "x"})
            same = total = 0
            for prompt, other in zip(ids, theirs(node, file, ids), strict=True):
                mine = ef.generate(model, jnp.asarray([prompt]), max_new_tokens=NEW, do_sample=False).sequences
                mine = np.asarray(mine)[0, len(prompt) :].tolist()[: len(other)]
                same += next((n for n, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(other))
                total += len(other)
            print(f"| {name.removesuffix('Config')} | {same} of {total} |", flush=True)


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
