#!/usr/bin/env bash
# Dynamic rotary positions in transformers: the answer to a text depends on how long the texts before it were.
# Guess: a model in eval mode, called twice with one text and without a cache, answers the same.
# Seen (transformers 5.24.0): a text longer than the trained length grows the base, and the table of frequencies stays on the
# module. A shorter one takes that of the longest so far, unless it is within the trained length, which sets it back.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=12, rope_parameters=rope)).eval()
ids = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    said = lambda length: model(ids[:, :length], use_cache=False).logits
    first, _, second, _, third = said(16), said(40), said(16), said(8), said(16)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
moved, back = ((other - first).abs().max().item() for other in (second, third))
print(f"16 tokens, trained for 12: after a text of 40 the logits are off by {moved:.2g}, after one of 8 by {back:.2g}")
sys.exit(0 if moved > 1e-3 and back < 1e-5 else "this has changed")
PY
