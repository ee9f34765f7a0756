#!/usr/bin/env bash
# MobileBERT's masked LM under PEFT: "all-linear" wraps `cls.predictions.dense`, whose weight transformers reads and which it never calls.
# Guess: a merged adapter answers what it answered before it was merged, as the law of LoRA is.
# Seen (peft 0.21.2, transformers 5.24.0): an adapter on that matrix alone changes nothing, and once merged it changes the logits.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0" "peft==0.21.2"
"$dir/env/bin/python" -W ignore - <<'PY'
import sys

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import MobileBertConfig, MobileBertForMaskedLM

torch.manual_seed(0)
sizes = dict(
    vocab_size=50, hidden_size=32, embedding_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
    intra_bottleneck_size=16, tie_word_embeddings=False,
)
model = MobileBertForMaskedLM(MobileBertConfig(**sizes)).eval()
ids = torch.tensor([[5, 6, 7, 8]])
with torch.no_grad():
    before = model(ids).logits
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    print("wrapped in the head:", [n for n, m in tuned.named_modules() if hasattr(m, "lora_A") and "cls." in n])
    for name, p in tuned.named_parameters():
        if "lora_B" in name and "cls.predictions.dense" not in name:
            p.zero_()
    beside = (tuned(ids).logits - before).abs().max().item()
    merged = (tuned.merge_and_unload()(ids).logits - before).abs().max().item()
print(f"an adapter on cls.predictions.dense changes the logits by {beside:.1e}, once merged by {merged:.1e}")
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
sys.exit(0 if beside == 0 and merged > 0.01 else "this has changed")
PY
