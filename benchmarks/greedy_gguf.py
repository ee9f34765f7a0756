"""llama.cpp on the files of `ef.save_gguf`: how many greedy tokens are ours, and how near the call was where one is not.

    npm install --prefix DIR -E --ignore-scripts node-llama-cpp@3.21.1
    python benchmarks/greedy_gguf.py DIR

llama.cpp rounds what enters a product of its blocks to 8 bits, which easyfn does not: tokens may part where two are about
as likely.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
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
