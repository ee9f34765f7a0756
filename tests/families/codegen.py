"""CodeGen: the four shards of its projections."""

from cases import SMALL, VOCAB, case, reference


def small(**more):
    from transformers import CodeGenConfig, CodeGenForCausalLM

    ids = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"n_positions": 64, "n_embd": 60, "n_layer": 3, "n_head": 6, "n_inner": 80, "rotary_dim": 6}
    return reference(CodeGenForCausalLM, CodeGenConfig(vocab_size=VOCAB, **sizes, **ids, **more))


@case("codegen")
def _():
    return small()


@case("codegen-tied", variant=True)  # a head that is tied keeps its bias: also GPT-J's, Phi's and ERNIE 4.5 MoE's
def _():
    return small(tie_word_embeddings=True)
