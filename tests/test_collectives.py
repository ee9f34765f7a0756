"""What a sharded step sends between devices: read from the compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef

EMBED, MLP, VOCAB, ROWS, TOKENS = 48, 80, 96, 8, 16
CONFIG = ef.models.LlamaConfig(
    vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=20,
)  # fmt: skip
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def sent(compiled) -> list[tuple[str, tuple[int, ...]]]:
    """Every collective of a program: its kind, and the shape of each array that it makes."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := re.search(rf"= (.*?) ({KINDS})(-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [(match[2], tuple(int(n) for n in s.split(",") if n)) for s in shapes]
    return found


def program(fsdp: int, tp: int, *, stacked: bool = False, train: bool = True, dp: int = 1):
    mesh = ef.make_mesh(dp=dp, fsdp=fsdp, tp=tp)
    model = ef.abstract(CONFIG, dtype="float32")
    model = ef.shard(ef.stack(model) if stacked else model, None, mesh)
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32, sharding=ef.data_sharding(mesh))
    if not train:
        return jax.jit(lambda m, x: ef.forward(m, x).logits).lower(model, ids).compile()
    state = ef.to_state(model, optax.adamw(1e-3))
    return jax.jit(ef.train_step, donate_argnums=0).lower(state, {"input_ids": ids}).compile()


def activations(shape: tuple[int, ...], rows: int) -> bool:
    """Whether an array is one of hidden states (or of something as wide) of so many rows of tokens."""
    return (
        len(shape) > 1 and (shape[:2] == (rows, TOKENS) or shape[0] == rows * TOKENS) and np.prod(shape) > rows * TOKENS
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_fsdp_gathers_weights_and_never_activations(stacked):
    """Every device works on its own rows: what is gathered are weights, what is summed are their gradients."""
    moved = sent(program(8, 1, stacked=stacked))
    assert any(kind == "all-gather" for kind, _ in moved)
    local = ROWS // 8
    for kind, shape in moved:
        if kind == "all-reduce" or kind == "reduce-scatter":
            assert not activations(shape, ROWS) and not activations(shape, local), (kind, shape)
        if kind == "all-gather" and len(shape) == 2 and shape[0] == ROWS * TOKENS:
            raise AssertionError(f"hidden states of all rows are gathered: {shape}")
    weights = {(MLP, EMBED), (EMBED, MLP), (80, EMBED), (40, EMBED), (VOCAB, EMBED)}
    assert any(tuple(sorted(s)) in {tuple(sorted(w)) for w in weights} for k, s in moved if k == "all-gather")


@pytest.mark.parametrize("train", [False, True])
def test_tensor_parallel_gathers_no_weight(train):
    """Megatron's pattern: weights stay where they are, and each half of a block sums its output over `tp` once."""
    moved = sent(program(1, 2, dp=4, train=train))
    matrices = {(80, EMBED), (40, EMBED), (EMBED, 80), (MLP, EMBED), (EMBED, MLP), (VOCAB, EMBED)}
    gathered = [shape for kind, shape in moved if kind == "all-gather"]
    assert not [s for s in gathered if s in matrices or s[::-1] in matrices], gathered
    if not train:
        local = (ROWS // 4) * TOKENS
        sums = [s for k, s in moved if k == "all-reduce" and int(np.prod(s)) == local * EMBED]
        assert len(sums) == 2 * CONFIG.num_hidden_layers + 1  # and one for the embedding of a split vocabulary


def test_both_at_once():
    """Under fsdp and tp the hidden states keep their rows apart, and are whole along `embed`."""
    moved = sent(program(4, 2))
    local = (ROWS // 4) * TOKENS
    sums = [s for k, s in moved if k == "all-reduce" and s[:1] == (ROWS * TOKENS,)]
    assert not sums, f"activations of all rows are summed: {sums}"
    assert any(k == "all-reduce" and int(np.prod(s)) == local * EMBED for k, s in moved)
