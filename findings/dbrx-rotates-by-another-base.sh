#!/usr/bin/env bash
# DBRX in transformers: the base of the rotation that its files give is read and not used.
# Guess: `attn_config.rope_theta`, 500000 in dbrx-base and dbrx-instruct, is what heads are rotated by.
# Seen (transformers 5.24.0): they are rotated by `rope_parameters`, 10000 where the file has none. And without a
# `rope_theta` in `attn_config`, as in DbrxConfig() and the example of its docs, the model cannot be built.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import DbrxConfig, DbrxModel

sizes = {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 50, "ffn_config": {"ffn_hidden_size": 8}}
attention = {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 500000}
config = DbrxConfig(**sizes, attn_config=attention)
base = 1.0 / DbrxModel(config).rotary_emb.inv_freq[1].item() ** (32 // 4 / 2)
try:
    DbrxModel(DbrxConfig(**sizes, attn_config={"clip_qkv": 8, "kv_n_heads": 2}))
    built = "is built"
except AttributeError as error:
    built = f"AttributeError: {error}"
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"the file says {attention['rope_theta']}, heads are rotated by {base:.0f}; without rope_theta in attn_config: {built}")
sys.exit(0 if abs(base - 10000) < 1 and "rope_theta" in built else "this has changed")
PY
