#!/usr/bin/env bash
# SqueezeBERT in transformers: `output_attentions=True` answers scores before the softmax, the mask added, and no weights.
# Guess: attentions are the weights after the softmax, as the documentation of the output says and every other encoder has it.
# Seen (transformers 5.24.0): they are negative, rows do not add up to one, and places of padding hold the lowest float.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import BertConfig, BertModel, SqueezeBertConfig, SqueezeBertModel

torch.manual_seed(0)
sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
ids, mask = torch.tensor([[5, 6, 7, 8, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
sums = {}
for cls, config in (
    (BertModel, BertConfig(**sizes, attn_implementation="eager")),
    (SqueezeBertModel, SqueezeBertConfig(**sizes, embedding_size=32)),
):
    with torch.no_grad():
        seen = cls(config).eval()(ids, attention_mask=mask, output_attentions=True).attentions[0]
    sums[cls.__name__] = seen[0, 0, 0].sum().item()
    print(f"{cls.__name__}: of the first token {[round(x, 3) for x in seen[0, 0, 0].tolist()]}")
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
sys.exit(0 if abs(sums["BertModel"] - 1) < 1e-5 and sums["SqueezeBertModel"] < -1e30 else "this has changed")
PY
