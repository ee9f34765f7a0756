"""BERT, with each of its heads."""

from typing import Any

from cases import SMALL, case, reference


def _bert(head: str, **more: Any) -> Any:
    import transformers.models.bert.modeling_bert as bert
    from transformers import BertConfig

    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "pad_token_id",
    )
    small = {k: SMALL[k] for k in keys}
    return reference(
        getattr(bert, head), BertConfig(**{**small, "max_position_embeddings": 40, "type_vocab_size": 3, **more})
    )


@case("bert-base", task="base", causal=False)
def _():
    return _bert("BertModel")


@case("bert", task="masked-lm", causal=False)
def _():
    return _bert("BertForMaskedLM", hidden_act="gelu_new", layer_norm_eps=1e-5)


@case("bert-untied", task="masked-lm", causal=False, variant=True)
def _():
    return _bert("BertForMaskedLM", tie_word_embeddings=False)  # its decoder has a bias of its own


@case("bert-pretraining", task="pretraining", causal=False, variant=True)
def _():
    return _bert("BertForPreTraining")


@case("bert-next-sentence", task="next-sentence", causal=False, variant=True)
def _():
    return _bert("BertForNextSentencePrediction")


@case("bert-sequence-classification", task="sequence-classification", causal=False, variant=True)
def _():
    return _bert("BertForSequenceClassification", num_labels=3)


@case("bert-token-classification", task="token-classification", causal=False, variant=True)
def _():
    return _bert("BertForTokenClassification", num_labels=5)


@case("bert-question-answering", task="question-answering", causal=False, variant=True)
def _():
    return _bert("BertForQuestionAnswering")


@case("bert-multiple-choice", task="multiple-choice", causal=False, variant=True)
def _():
    return _bert("BertForMultipleChoice", classifier_dropout=0.3)
