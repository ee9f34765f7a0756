#!/usr/bin/env bash
# llama.cpp on gpt-oss: the range in which yarn blends its frequencies is rounded to whole ones, which gpt-oss says not to do.
# Guess: gpt-oss's config has `truncate: false` in its rope_parameters (its authors' code rounds nothing), so llama.cpp, which reads
# the architecture `gpt-oss` apart from others, leaves the range as it is.
# Seen (node-llama-cpp 3.22.1, transformers 5.24.0): of a random model in float32 the log-probabilities of llama.cpp are those of
# transformers with `truncate: true`, and far from those that the model has. No key of a file says it.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0" "gguf==0.19.0"
npm install --silent --prefix "$dir" -E --ignore-scripts node-llama-cpp@3.22.1
cat > "$dir/run.mjs" <<'JS'
import {getLlama} from "node-llama-cpp"; import fs from "fs";
const ids = JSON.parse(process.argv[3]);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: process.argv[2]});
const sequence = (await model.createContext({contextSize: 256})).getSequence();
const last = ids.length - 1;
const out = await sequence.controlledEvaluate(ids.map((t, i) => i == last ? [t, {generateNext: {probabilities: true}}] : t));
fs.writeFileSync(process.argv[4], JSON.stringify([...out[last].next.probabilities.entries()]));
process.exit(0);
JS
"$dir/env/bin/python" - "$dir" <<'PY'
import copy
import json
import subprocess
import sys
import gguf, torch, transformers
from transformers import GptOssConfig, GptOssForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 64, "truncate": False}
c = GptOssConfig(
    vocab_size=288, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, sliding_window=128, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
    rope_parameters=rope, attn_implementation="eager",
)
model = GptOssForCausalLM(c).float().eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.15 * torch.randn_like(p))
w = gguf.GGUFWriter(sys.argv[1] + "/m.gguf", "gpt-oss")
w.add_context_length(c.max_position_embeddings)
w.add_embedding_length(c.hidden_size)
w.add_block_count(c.num_hidden_layers)
w.add_feed_forward_length(c.intermediate_size)
w.add_expert_feed_forward_length(c.intermediate_size)
w.add_expert_count(c.num_local_experts)
w.add_expert_used_count(c.num_experts_per_tok)
w.add_head_count(c.num_attention_heads)
w.add_head_count_kv(c.num_key_value_heads)
w.add_key_length(c.head_dim)
w.add_value_length(c.head_dim)
w.add_layer_norm_rms_eps(c.rms_norm_eps)
w.add_sliding_window(c.sliding_window)
w.add_rope_dimension_count(c.head_dim)
w.add_rope_freq_base(rope["rope_theta"])
w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
w.add_rope_scaling_factor(rope["factor"])
w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
w.add_vocab_size(c.vocab_size)
bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]
chars = [chr(b) for b in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]
w.add_tokenizer_model("gpt2")
w.add_tokenizer_pre("gpt-2")
w.add_token_list(chars + [f"<t{i}>" for i in range(c.vocab_size - len(chars))])
w.add_token_types([1] * c.vocab_size)
w.add_token_merges(["a b"])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, c.num_hidden_layers)
for name, value in model.state_dict().items():
    stem, _, last = name.rpartition(".")
    value = value.float()
    if "experts" in name:
        layer, last = name.split(".")[2], "bias" if name.endswith("bias") else "weight"
        value = value if last == "bias" else value.transpose(1, 2)  # (experts, out, in)
        pieces = {"down": value} if "down" in name else {"gate": value[:, ::2], "up": value[:, 1::2]}
        for kind, piece in pieces.items():
            w.add_tensor(f"blk.{layer}.ffn_{kind}_exps.{last}", piece.contiguous().numpy())
    elif last == "sinks":
        w.add_tensor(f"{names.get_name(name)}.weight", value.numpy())
    else:
        w.add_tensor(f"{names.get_name(stem)}.{last}", value.numpy())
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
ids = torch.randint(0, c.vocab_size, (20,)).tolist()
out = sys.argv[1] + "/out.json"
subprocess.run(["node", "run.mjs", sys.argv[1] + "/m.gguf", json.dumps(ids), out], cwd=sys.argv[1], check=True)
theirs = torch.zeros(c.vocab_size)
for token, probability in json.load(open(out)):
    theirs[token] = probability
apart = {}
for truncate in (False, True):
    config = copy.deepcopy(c)
    config.rope_parameters = rope | {"truncate": truncate}
    other = GptOssForCausalLM(config).float().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        apart[truncate] = (other(torch.tensor([ids])).logits[0, -1].log_softmax(-1) - theirs.log()).abs().max().item()
print(f"transformers {transformers.__version__}, node-llama-cpp 3.22.1: log-probabilities of llama.cpp are off by "
      f"{apart[False]:.2g} from the model, whose truncate is false, and by {apart[True]:.2g} from the one with true")
sys.exit(0 if apart[False] > 0.1 > 10 * apart[True] else "this has changed")
PY
