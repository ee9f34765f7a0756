#!/usr/bin/env bash
# Rows that are packed and say so by `position_ids` alone, as a collator for flattened batches makes them.
# Guess: transformers keeps documents apart in every decoder, with the default arguments.
# Seen (transformers 5.24.0): apart in Llama, and only with use_cache=False, which is not the default of `forward`; gpt-oss
# lets the second document see the first, whatever use_cache says.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=12, attn_implementation="eager")


def moved(make, use_cache):
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.arange(3, 13)[None]
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        packed = model(ids, position_ids=places, use_cache=use_cache).logits[:, 4:]
        return (packed - model(ids[:, 4:]).logits).abs().max().item()


llama = lambda: LlamaForCausalLM(LlamaConfig(**SIZES))
gpt_oss = lambda: GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))
found = {(name, use): moved(make, use) for name, make in (("llama", llama), ("gpt_oss", gpt_oss)) for use in (False, True)}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for (name, use), difference in found.items():
    print(f"{name}, use_cache={use}: the second document's logits against alone: {difference:.3g}")
apart = [key for key, difference in found.items() if difference < 1e-4]
sys.exit(0 if apart == [("llama", False)] else "this has changed")
PY
