"""easyfn's objectives beside TRL's trainers, on the same weights and the batches that those trainers make.

    pip install "trl==1.16.0" accelerate datasets
    python benchmarks/objectives.py

Prints each loss on both sides and the relative difference, and fails where one is above 1e-5. The model is
`examples/tiny`, the reference the same with noise on its weights, the answers are lines of Python.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers
import trl
from datasets import Dataset

import easyfn as ef

warnings.filterwarnings("ignore")
TINY = Path(__file__).parent.parent / "examples" / "tiny"
PROMPTS = ["def add(a, b):\n", "import os\n", "class Point:\n", "for i in range(10):\n"]
CHOSEN = ["    return a + b\n", "print(os.getcwd())\n", "    x = 0\n    y = 0\n", "    print(i)\n"]
REJECTED = ["    pass\n", "os = None\nprint(os)\n", "    pass\n", "    i = i + 1 * 2\n"]


def torch_models() -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    reference = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return model, reference


def tokenizer() -> Any:
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY / "tokenizer.json"))
    made.pad_token = made.eos_token = made.convert_ids_to_tokens(0)
    return made


MODEL, REFERENCE = torch_models()
OURS, OUR_REFERENCE = ef.from_torch(MODEL), ef.from_torch(REFERENCE)
TOKENIZER = tokenizer()
ROWS: list[tuple[str, float, float]] = []


def quiet(**more: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **more,
    }


def compare(name: str, ours: Any, theirs: Any) -> None:
    ours, theirs = float(ours), float(theirs)
    off = abs(ours - theirs) / max(abs(theirs), 1e-3)
    ROWS.append((name, ours, off))
    print(f"{name:24} {ours:12.6f} {theirs:12.6f}   {off:.1e}", flush=True)


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: jnp.asarray(v.numpy()) for k, v in batch.items() if isinstance(v, torch.Tensor)}


def halves(batch: dict[str, Any]) -> dict[str, Any]:
    """TRL stacks chosen on rejected rows; ours are named."""
    given = arrays(batch)
    ids, mask, answer = given["input_ids"], given["attention_mask"], given["completion_mask"]
    labels = jnp.where(answer > 0, ids, -100)
    parts = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    half = len(ids) // 2
    return {
        f"{side}_{k}": v[rows]
        for side, rows in (("chosen", slice(0, half)), ("rejected", slice(half, None)))
        for k, v in parts.items()
    }


def preferences() -> Any:
    return Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})


def dpo() -> None:
    for kind in ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"):
        s = 0.1 if kind == "robust" else 0.0
        args = trl.DPOConfig(**quiet(loss_type=[kind], label_smoothing=s, beta=0.3))
        trainer = trl.DPOTrainer(
            copy.deepcopy(MODEL), REFERENCE, args=args, train_dataset=preferences(), processing_class=TOKENIZER
        )
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))
        ours, _ = ef.dpo_loss(OURS, halves(batch), reference=OUR_REFERENCE, beta=0.3, kind=kind, label_smoothing=s)
        compare(f"dpo {kind}", ours, theirs)


def reward() -> None:
    config = copy.deepcopy(MODEL.config)
    config.num_labels, config.pad_token_id = 1, TOKENIZER.pad_token_id
    torch.manual_seed(1)
    module = transformers.AutoModelForSequenceClassification.from_config(config)
    module.model.load_state_dict(MODEL.model.state_dict())
    args = trl.RewardConfig(**quiet(center_rewards_coefficient=0.01))
    trainer = trl.RewardTrainer(module, args=args, train_dataset=preferences(), processing_class=TOKENIZER)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))
    given = arrays(batch)
    half = len(given["input_ids"]) // 2
    parts = {
        f"{side}_{k}": given[k][rows]
        for side, rows in (("chosen", slice(0, half)), ("rejected", slice(half, None)))
        for k in ("input_ids", "attention_mask")
    }
    ours, _ = ef.reward_loss(ef.from_torch(module, task="sequence-classification"), parts, center=0.01)
    compare("reward", ours, theirs)


def grpo() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 200, (4, 6))
    answer = rng.integers(3, 200, (4, 9))
    seen = (np.arange(9)[None] < np.array([9, 4, 7, 2])[:, None]).astype(np.int64)
    before = np.ones_like(prompt)
    before[1, :3] = 0
    advantages = np.array([1.2, -0.7, 0.4, -0.9], np.float32)
    ids, mask = np.concatenate([prompt, answer], 1), np.concatenate([before, seen], 1)
    labels = np.where(np.concatenate([np.zeros_like(before), seen], 1) > 0, ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    tensor = lambda x: torch.tensor(np.array(x))
    theirs_batch = {
        "prompt_ids": tensor(prompt),
        "prompt_mask": tensor(before),
        "completion_ids": tensor(answer),
        "completion_mask": tensor(seen),
        "advantages": tensor(advantages),
        "num_items_in_batch": torch.tensor(int(seen.sum())),
    }
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo"):
        rows = [("token", True, 1.0), ("sequence", False, 1.0)]
        if kind in ("grpo", "cispo"):  # the others' terms cancel at 0.7: of 0.006, the rounding of 8e-7 is 1e-4
            rows.append(("token", True, 0.7))
        for level, unbiased, temperature in rows:
            high = 0.28 if kind != "cispo" else 2.0
            args = trl.GRPOConfig(
                **quiet(
                    loss_type=kind,
                    importance_sampling_level=level,
                    beta=0.04,
                    epsilon_high=high,
                    use_bias_correction_kl=unbiased,
                    max_completion_length=9,
                    temperature=temperature,
                    num_generations=2,
                )
            )
            trainer = trl.GRPOTrainer(
                copy.deepcopy(MODEL),
                reward_funcs=lambda completions, **_: [0.0] * len(completions),
                args=args,
                train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
                processing_class=TOKENIZER,
            )
            trainer.current_gradient_accumulation_steps = 1
            old, _ = ef.token_logprobs(OUR_REFERENCE, batch, temperature=temperature)
            given = {**batch, "advantages": advantages, "old_logprobs": old}
            known = {f"{name}_per_token_logps": tensor(old)[:, 5:14] for name in ("old", "ref")}
            with torch.no_grad():
                theirs = trainer._compute_loss(trainer.model.eval(), {**theirs_batch, **known})
            ours, _ = ef.grpo_loss(
                OURS,
                given,
                reference=OUR_REFERENCE,
                beta=0.04,
                epsilon_high=high,
                kind=kind,
                level=level,
                unbiased_kl=unbiased,
                max_new_tokens=9,
                temperature=temperature,
            )
            compare(f"grpo {kind} {level} {temperature}", ours, theirs)


def main() -> None:
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'objective':24} {'easyfn':>12} {'trl':>12}   relative difference")
    dpo()
    reward()
    grpo()
    worst = max(ROWS, key=lambda row: row[2])
    print(f"largest difference: {worst[2]:.1e} ({worst[0]})")
    if worst[2] > 1e-5:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
