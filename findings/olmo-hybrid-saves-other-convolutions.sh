#!/usr/bin/env bash
# OLMo Hybrid in transformers: `save_pretrained` cuts the convolutions of queries, keys and values in three equal parts.
# Guess: a file loaded and saved has the tensors that it had.
# Seen (transformers 5.24.0): values are twice as wide as keys, so every part has another shape than in the file that was loaded.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys, tempfile
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

config = OlmoHybridConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, eos_token_id=2, layer_types=["linear_attention", "full_attention"],
)
keys, values = 4 * config.linear_key_head_dim, 4 * config.linear_value_head_dim
folder = tempfile.mkdtemp()
OlmoHybridForCausalLM(config).save_pretrained(folder)
state = load_file(f"{folder}/model.safetensors")
names = [f"model.layers.0.linear_attn.{part}_conv1d.weight" for part in "qkv"]
# As in the published files: each as wide as its projection.
whole = torch.cat([state[name] for name in names])
state.update({name: part.contiguous() for name, part in zip(names, whole.split([keys, keys, values]))})
save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
again = tempfile.mkdtemp()
OlmoHybridForCausalLM.from_pretrained(folder).save_pretrained(again)
before, after = state, load_file(f"{again}/model.safetensors")
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for name in names:
    print(f"{name}: loaded {tuple(before[name].shape)}, saved {tuple(after[name].shape)}")
sys.exit(0 if any(before[n].shape != after[n].shape for n in names) else "this has changed")
PY
