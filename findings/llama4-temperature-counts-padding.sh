#!/usr/bin/env bash
# Llama 4 in transformers: the temperature of layers without rotary positions counts padding, whatever position_ids say.
# Guess: a row padded on the left, with its mask and its position_ids, gives the logits of the row alone.
# Seen (transformers 5.24.0): it does not once rows pass floor_scale; with attn_temperature_tuning off it does.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Llama4ForCausalLM, Llama4TextConfig


def difference(tuning):
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, no_rope_layers=[0, 0], moe_layers=[], floor_scale=3,
        attn_scale=5.0, attn_temperature_tuning=tuning,
    )
    config._attn_implementation = "eager"
    model = Llama4ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        row = torch.arange(3, 9)[None]
        padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), row], dim=1)
        mask = torch.tensor([[0] * 6 + [1] * 6])
        places = torch.tensor([[0] * 6 + list(range(6))])
        alone = model(row).logits[0, -1]
        return (alone - model(padded, attention_mask=mask, position_ids=places).logits[0, -1]).abs().max().item()


on, off = difference(True), difference(False)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"last token's logits, padded on the left against alone: {on:.3g} with temperature tuning, {off:.3g} without")
sys.exit(0 if on > 1e-2 and off < 1e-4 else "this has changed")
PY
