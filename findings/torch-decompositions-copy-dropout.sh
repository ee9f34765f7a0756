#!/usr/bin/env bash
# torch.export: run_decompositions() copies what dropout in eval mode gives back, and what is written afterwards is lost.
# Guess: a decomposed program gives what the module gives, also where an array is written into after an idle dropout.
# Seen (torch 2.13.0): the exported program agrees with the module, the decomposed one does not; no error, no warning.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" numpy
"$dir/env/bin/python" - <<'PY'
import sys
import torch


class Writes(torch.nn.Module):
    def forward(self, x):
        h = x * 1.0
        y = torch.nn.functional.dropout(h, 0.5, self.training)
        h.add_(1)
        return y


module, x = Writes().eval(), torch.zeros(2)
program = torch.export.export(module, (x,), strict=False)
found = {"eager": module(x), "exported": program.module()(x), "decomposed": program.run_decompositions().module()(x)}
print(f"torch {torch.__version__}")
for name, value in found.items():
    print(f"{name}: {value.tolist()}")
same = torch.equal(found["eager"], found["exported"])
sys.exit(0 if same and not torch.equal(found["eager"], found["decomposed"]) else "this has changed")
PY
