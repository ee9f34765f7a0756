#!/usr/bin/env bash
# A Zamba2 config.json, cut to fewer layers by its `num_hidden_layers` and `layers_block_type`.
# Guess: `hybrid_layer_ids`, which a config writes beside them, is made from `layers_block_type` again.
# Seen (transformers 5.24.0): the written one stays, and the model follows both: its layers one list, the adapters of its
# shared blocks, in number, the other.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Zamba2Config, Zamba2ForCausalLM

KINDS = ["hybrid", "linear_attention", "hybrid"]
SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2, mamba_d_state=4,
             mamba_headdim=8, n_mamba_heads=4, mamba_ngroups=1, num_mem_blocks=1, adapter_rank=4, pad_token_id=0)
written = Zamba2Config(**SIZES, num_hidden_layers=3, layers_block_type=KINDS).to_dict()
cut = Zamba2Config(**{**written, "num_hidden_layers": 1, "layers_block_type": KINDS[:1]})
fresh = Zamba2Config(**SIZES, num_hidden_layers=1, layers_block_type=KINDS[:1])


def adapters(config):
    with torch.device("meta"):
        names = dict(Zamba2ForCausalLM(config).named_parameters())
    return sum("gate_up_proj_adapter_list" in name for name in names)


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"written anew: hybrid_layer_ids {fresh.hybrid_layer_ids}, {adapters(fresh)} tensors of adapters")
print(f"cut:          hybrid_layer_ids {cut.hybrid_layer_ids}, {adapters(cut)} tensors of adapters")
sys.exit(0 if (fresh.hybrid_layer_ids, cut.hybrid_layer_ids) == ([0], [0, 2]) and adapters(cut) > adapters(fresh) else "this has changed")
PY
