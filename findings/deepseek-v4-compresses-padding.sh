#!/usr/bin/env bash
# DeepSeek-V4 in transformers: padding on the left changes what the model answers, in forward passes and in generation.
# Guess: the compressor cuts windows by columns and asks no mask, so padding is part of the first entries; with layers that only
# slide a window the row answers as alone.
# Seen (transformers 5.24.0): so it is. With its mask and its position_ids a padded row has other logits, unless no layer compresses.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM


def difference(kind):
    torch.manual_seed(0)
    config = DeepseekV4Config(
        vocab_size=97, hidden_size=48, moe_intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        q_lora_rank=16, n_routed_experts=4, num_experts_per_tok=2, layer_types=[kind] * 2, mlp_layer_types=["moe"] * 2,
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}, hc_mult=2, sliding_window=8,
        o_groups=2, o_lora_rank=8, index_n_heads=4, index_head_dim=16, index_topk=8, partial_rotary_factor=0.5,
    )
    config._attn_implementation = "eager"
    model = DeepseekV4ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        ids = torch.arange(3, 14)[None]
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
        mask = torch.tensor([[0] * 3 + [1] * 11])
        places = torch.tensor([[0] * 3 + list(range(11))])
        got = model(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
        return (got - model(ids).logits).abs().max().item()


kinds = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
found = {kind: difference(kind) for kind in kinds}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("logits padded on the left against alone:", ", ".join(f"{kind} {value:.3g}" for kind, value in found.items()))
plain, *others = found.values()
sys.exit(0 if plain < 1e-4 and min(others) > 1e-2 else "this has changed")
PY
