#!/usr/bin/env bash
# transformers on Gemma 2 in a .gguf file: the scale of attention and both soft caps are the config's defaults.
# Guess: what the file says (`attn_logit_softcapping`, `final_logit_softcapping`) is read, and queries are scaled as llama.cpp
# does, by the width of a head (of the model with 46 layers, by hidden_size / heads).
# Seen (transformers 5.24.0, gguf 0.19.0): caps of 20 and 10 in the file become 50 and 30, and `query_pre_attn_scalar` is 256
# whatever the heads; the tensors are right, the logits are not, and nothing is said. The 27B model has 144 there.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0" "gguf==0.19.0" "accelerate==1.15.0"
"$dir/env/bin/python" - "$dir" <<'PY'
import importlib.metadata
import sys
import gguf, torch, transformers
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

torch.manual_seed(0)
c = Gemma2Config(
    vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, query_pre_attn_scalar=32, attn_logit_softcapping=20.0, final_logit_softcapping=10.0, sliding_window=4096,
)
model = Gemma2ForCausalLM(c).eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
w = gguf.GGUFWriter(sys.argv[1] + "/m.gguf", "gemma2")
w.add_context_length(c.max_position_embeddings)
w.add_embedding_length(c.hidden_size)
w.add_block_count(c.num_hidden_layers)
w.add_feed_forward_length(c.intermediate_size)
w.add_head_count(c.num_attention_heads)
w.add_head_count_kv(c.num_key_value_heads)
w.add_key_length(c.head_dim)
w.add_value_length(c.head_dim)
w.add_layer_norm_rms_eps(c.rms_norm_eps)
w.add_attn_logit_softcapping(c.attn_logit_softcapping)
w.add_final_logit_softcapping(c.final_logit_softcapping)
w.add_sliding_window(c.sliding_window)
w.add_vocab_size(c.vocab_size)
w.add_tokenizer_model("gpt2")
w.add_token_list([f"t{i}" for i in range(c.vocab_size)])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA2, c.num_hidden_layers)
for name, value in model.state_dict().items():
    if name != "lm_head.weight":
        stem, _, last = name.rpartition(".")
        w.add_tensor(f"{names.get_name(stem)}.{last}", (value + 1 if "norm" in name else value).numpy())
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
read = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file="m.gguf", dtype=torch.float32).eval()
keys = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
ids = torch.arange(3, 20)[None]
apart = lambda: (read(ids).logits - model(ids).logits).abs().max().item()
print(f"transformers {transformers.__version__}, gguf {importlib.metadata.version('gguf')}")
same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(read.parameters(), model.parameters(), strict=True))
found = {key: getattr(read.config, key) for key in keys}
with torch.no_grad():
    print("weights equal:", same, "| read:", found, f"| logits are off by {apart():.2g}")
    ok = same and tuple(found.values()) == (50.0, 30.0, 256) and apart() > 1e-2
sys.exit(0 if ok else "this has changed")
PY
