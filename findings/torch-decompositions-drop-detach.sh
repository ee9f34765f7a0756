#!/usr/bin/env bash
# torch.export: run_decompositions() drops detach and no_grad, and with them what the gradient leaves out.
# Guess: a decomposed program has the gradient of the exported one, which is that of the module.
# Seen (torch 2.13.0): no error and no warning; outputs are equal, gradients are not.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" numpy
"$dir/env/bin/python" - <<'PY'
import sys
import torch


class Held(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, bias=False)

    def forward(self, x):
        with torch.no_grad():
            held = self.linear(x)
        return (self.linear(x) * held + self.linear(x).detach()).sum()


def gradient(function):
    return torch.autograd.grad(function(x), list(function.parameters()))[0].flatten().tolist()


torch.manual_seed(0)
module, x = Held(), torch.ones(1, 2)
program = torch.export.export(module, (x,), strict=False)
decomposed = program.run_decompositions().module()
eager, exported, after = gradient(module), gradient(program.module()), gradient(decomposed)
print(f"torch {torch.__version__}")
print(f"outputs: eager {module(x).item():.4f}, decomposed {decomposed(x).item():.4f}")
for name, value in (("eager", eager), ("exported", exported), ("decomposed", after)):
    print(f"gradient, {name}: {[round(v, 4) for v in value]}")
changed = max(abs(a - b) for a, b in zip(eager, after))
kept = max(abs(a - b) for a, b in zip(eager, exported))
sys.exit(0 if changed > 1e-2 and kept < 1e-6 else "this has changed")
PY
