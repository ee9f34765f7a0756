#!/usr/bin/env bash
# A group norm whose groups hold one entry each, as at the last level of a small picture: x - mean is 0.
# Guess: it gives its bias, to the last bit, as a layer norm of one entry does.
# Seen (torch 2.13.0, CPU): it computes x * scale + (bias - mean * scale) with scale = 1 / sqrt(eps) = 316, and is off by the
# rounding of 316 x: 2e-4 in float32 for entries of about 20. Without a weight and a bias it is 0 exactly.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch
from torch.nn import functional

torch.manual_seed(0)
x, weight, bias = 10 * torch.randn(2, 32, 1, 1), torch.ones(32), torch.linspace(-1, 1, 32)
by_group = (functional.group_norm(x, 32, weight, bias) - bias[:, None, None]).abs().max().item()
by_layer = (functional.layer_norm(x, [1], torch.ones(1), torch.full((1,), 0.3)) - 0.3).abs().max().item()
plain = functional.group_norm(x, 32).abs().max().item()
print(f"torch {torch.__version__}: from the bias, group norm {by_group:.1e}, layer norm {by_layer:.1e}; without a bias {plain:.1e}")
sys.exit(0 if by_group > 5e-5 and by_layer == plain == 0 else "this has changed")
PY
