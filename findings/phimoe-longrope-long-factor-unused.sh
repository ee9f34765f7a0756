#!/usr/bin/env bash
# Phi-3.5-MoE in transformers: longrope's long factors are checked, and never used.
# Guess: past original_max_position_embeddings the long factors rotate, as they do for Phi-3.
# Seen (transformers 5.24.0): long factors of 1 and of 9 give the same logits at every length; for Phi-3 they do not.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

SIZES = dict(vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ids = torch.arange(3, 35)[None]  # 32 tokens, trained length 8


def logits(kind, factor):
    rope = dict(rope_type="longrope", rope_theta=1e4, factor=4.0, original_max_position_embeddings=8,
                short_factor=[1.0] * 4, long_factor=[factor] * 4)
    torch.manual_seed(0)
    if kind == "phi3":
        config = Phi3Config(**SIZES, max_position_embeddings=32, original_max_position_embeddings=8, rope_parameters=rope)
        model = Phi3ForCausalLM(config)
    else:
        rope |= dict(short_mscale=1.0, long_mscale=1.0)
        model = PhimoeForCausalLM(PhimoeConfig(**SIZES, num_local_experts=4, rope_parameters=rope))
    with torch.no_grad():
        return model.eval()(ids).logits


phi3 = (logits("phi3", 1.0) - logits("phi3", 9.0)).abs().max().item()
phimoe = (logits("phimoe", 1.0) - logits("phimoe", 9.0)).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits of 32 tokens, long_factor 1 against 9: phi3 differs by {phi3:.3g}, phimoe by {phimoe:.3g}")
sys.exit(0 if phi3 > 1e-4 and phimoe == 0.0 else "this has changed")
PY
