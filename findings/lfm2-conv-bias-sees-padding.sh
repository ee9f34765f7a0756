#!/usr/bin/env bash
# Lfm2 in transformers: with conv_bias, padding on the left changes what the model answers.
# Guess: with its mask and its position_ids, a padded row gives the logits of the row alone, as it does without the bias.
# Seen (transformers 5.24.0): padding is set to zero before the input projection, whose bias then fills it again, and the
# short convolution reads that.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Lfm2Config, Lfm2ForCausalLM


def difference(bias):
    torch.manual_seed(0)
    config = Lfm2Config(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, layer_types=["conv", "full_attention"], conv_bias=bias)
    config._attn_implementation = "eager"
    model = Lfm2ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        ids = torch.arange(3, 10)[None]
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
        mask = torch.tensor([[0] * 3 + [1] * 7])
        places = torch.tensor([[0] * 3 + list(range(7))])
        got = model(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
        return (got - model(ids).logits).abs().max().item()


biased, plain = difference(True), difference(False)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits padded on the left against alone: {biased:.3g} with conv_bias, {plain:.3g} without")
sys.exit(0 if biased > 1e-2 and plain < 1e-4 else "this has changed")
PY
