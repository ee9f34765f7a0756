#!/usr/bin/env bash
# ESM in transformers 5: save_pretrained writes names that the files of the hub do not have.
# Guess: it writes `LayerNorm.weight` and the frequencies of each layer, or of the model, as the hub's files and the module have them.
# Seen (transformers 5.24.0): `LayerNorm.gamma` and `LayerNorm.beta`, TensorFlow's names, and the rotary frequencies under
# `encoder.layer.*.attention.self.rotary_embeddings.inv_freq`, with a star for a number. transformers 5 reads them again.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - "$dir" <<'PY'
import sys
import torch, transformers
from safetensors import safe_open
from transformers import EsmConfig, EsmForMaskedLM

torch.manual_seed(0)
config = EsmConfig(
    vocab_size=33, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    position_embedding_type="rotary", pad_token_id=1, mask_token_id=32,
)
model = EsmForMaskedLM(config)
model.save_pretrained(sys.argv[1])
with safe_open(f"{sys.argv[1]}/model.safetensors", "pt") as file:
    held = set(file.keys())
odd = sorted(held - set(model.state_dict()))
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("in the file and not in the module:", *odd, sep="\n  ")
old = [name for name in odd if name.endswith(("LayerNorm.gamma", "LayerNorm.beta"))]
sys.exit(0 if len(old) == 8 and any("*" in name for name in odd) else "this has changed")
PY
