"""ESM: dropped tokens, contacts, and the names under which its files hold what."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import easyfn as ef
from cases import CASES, VOCAB, port, reference
from easyfn.models.esm import predict_contacts

KEYS = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KEYS |= {"pad_token_id": 1, "mask_token_id": 7, "token_dropout": True, "max_position_embeddings": 40}


def rows():
    """Ids with `<mask>` among them, and a row with padding behind its `<eos>`."""
    ids = np.random.RandomState(0).randint(8, VOCAB, (3, 12))
    ids[:, 0], ids[:, -1] = 0, 2
    ids[0, 3:6] = ids[1, 4] = 7
    ids[1, 8], ids[1, 9:] = 2, 1
    return ids, (ids != 1).astype(int)


def esm(**more):
    from transformers import EsmConfig, EsmForMaskedLM

    return reference(EsmForMaskedLM, EsmConfig(**KEYS, **more))


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_dropped_tokens_and_contacts(positions):
    hf = esm(position_embedding_type=positions, emb_layer_norm_before=positions == "absolute")
    model, (ids, mask) = port(hf, "masked-lm"), rows()
    with torch.no_grad():
        want = hf(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
        contacts = hf.predict_contacts(torch.tensor(ids), torch.tensor(mask)).numpy()
    np.testing.assert_allclose(ef.forward(model, ids, attention_mask=mask).logits[mask > 0], want[mask > 0], atol=1e-4)
    np.testing.assert_allclose(predict_contacts(model, ids, mask), contacts, atol=1e-4)
    # Each document of a row has its own share of `<mask>`, and padding on the left is as none.
    alone = ef.forward(model, ids[:1]).logits
    both = np.concatenate([ids[:1], ids[1:2, :9], np.ones((1, 3), int)], axis=1)
    packed = ef.forward(model, both, segment_ids=np.array([[1] * 12 + [2] * 9 + [0] * 3])).logits
    np.testing.assert_allclose(packed[:, :12], alone, atol=1e-4)
    np.testing.assert_allclose(packed[0, 12:21], want[1, :9], atol=1e-4)
    left = np.roll(ids[1:2], 3), np.roll(mask[1:2], 3)
    np.testing.assert_allclose(predict_contacts(model, *left)[0, 3:, 3:], contacts[1, :7, :7], atol=1e-4)
    # What takes the place of ids is taken as it is.
    embeds = np.random.RandomState(1).randn(2, 5, 24).astype(np.float32)
    with torch.no_grad():
        want = hf(inputs_embeds=torch.tensor(embeds)).logits.numpy()
    np.testing.assert_allclose(ef.forward(model, inputs_embeds=embeds).logits, want, atol=1e-4)


def test_files_of_the_hub_and_of_transformers(tmp_path):
    """Frequencies are what a file says, of each layer or once; ours are read by transformers to the bit."""
    hf = CASES["esm"].make()
    hf.esm.rotary_embeddings.inv_freq.data = hf.esm.rotary_embeddings.inv_freq.half().float()
    hf.save_pretrained(tmp_path / "theirs")
    model = ef.load(tmp_path / "theirs")
    frequencies = model.model.encoder.rotary_embeddings
    np.testing.assert_array_equal(frequencies.inv_freq, hf.esm.rotary_embeddings.inv_freq.numpy())
    assert ef.cast(model, "bfloat16").model.encoder.rotary_embeddings.inv_freq.dtype == "float32"
    ef.save(model, tmp_path / "ours")
    back, report = type(hf).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    for (name, a), b in zip(hf.state_dict().items(), back.state_dict().values(), strict=True):
        assert a.equal(b), name

    held = load_file(tmp_path / "ours/model.safetensors")
    assert "esm.encoder.layer.0.attention.LayerNorm.weight" in held and not any("*" in name for name in held)
    once = held.pop("esm.rotary_embeddings.inv_freq")
    hub = {f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq": once for i in range(3)}
    hub["esm.embeddings.position_ids"] = np.arange(40)[None]
    save_file(held | hub, tmp_path / "ours/model.safetensors")
    again = ef.load(tmp_path / "ours")
    np.testing.assert_array_equal(again.model.encoder.rotary_embeddings.inv_freq, frequencies.inv_freq)
    save_file(held, tmp_path / "ours/model.safetensors")
    drawn = ef.load(tmp_path / "ours").model.encoder.rotary_embeddings.inv_freq
    np.testing.assert_allclose(drawn, 1 / 500 ** (np.arange(0, 8, 2) / 8), rtol=1e-6)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"is_folding_model": True}, "is_folding_model"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"mask_token_id": None}, "token_dropout=True needs mask_token_id"),
        ({"pad_token_id": None}, "needs pad_token_id"),
    ],
)
def test_refused(change, says, tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "esm", **KEYS, **change}))
    with pytest.raises((ValueError, ef.UnknownConfigKey), match=says):
        ef.abstract(str(tmp_path))
