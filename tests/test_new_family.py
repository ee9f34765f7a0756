"""`easyfn new-family`: a page that can be imported as it stands, with the reference's fields; nothing is overwritten."""

import importlib.util
import sys

import pytest

import easyfn as ef
from easyfn.cli import main, new_family
from easyfn.cli.blueprint import plan_of


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_a_page_from_a_decoder(tmp_path, monkeypatch, capsys):
    from transformers import Qwen2Config

    line = ["new-family", "begun", "--from-transformers", "qwen2", "--into", str(tmp_path)]
    main(line)
    said = capsys.readouterr().out
    assert "Qwen2Config" in said and "hidden states are the reference's: " in said and "qwen2 (" in said
    assert "keys that nothing of the plan reads: max_window_layers, use_sliding_window" in said
    page, reference = imported(tmp_path / "begun.py"), Qwen2Config()
    config = page.BegunConfig()
    for name in ("hidden_size", "num_key_value_heads", "use_sliding_window", "max_window_layers", "rms_norm_eps"):
        assert getattr(config, name) == getattr(reference, name), name
    assert config.rope_parameters["rope_theta"] == reference.rope_parameters["rope_theta"]
    monkeypatch.syspath_prepend(tmp_path)
    case = imported(tmp_path / "test_begun.py")
    theirs = {name: tuple(value.shape) for name, value in case.module().state_dict().items()}
    assert {name: value.shape for name, value in ef.params(case.make(None)).items()} == theirs
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2 and "--force" in capsys.readouterr().err


def test_a_plan_of_experts_agrees_and_goes_where_families_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("src/easyfn/models", "tests/families"):
        (tmp_path / folder).mkdir(parents=True)
    main(["new-family", "begun_sparse", "--from-transformers", "laguna"])
    said, page = capsys.readouterr().out, (tmp_path / "src/easyfn/models/begun_sparse.py").read_text()
    assert "no place for" not in said and "hidden states are the reference's: " in said
    assert "mlp.shared_expert. -> mlp.shared_experts." in said and "experts.*" not in said
    for line in (
        "from ..names.rules import rename",
        "from .mixtures import mlp_kinds, per_expert",
        'gate="softplus", head_gates=True, window=windows[i], rope=kinds[i]',
        "softcap=c.moe_router_logit_softcapping or None",
        "names=(*per_expert(), *_MODULES), classifies=False, modules=_MODULES",
    ):
        assert line in page, line
    assert "easyfn" not in page.partition('"""\n')[2] and "ef." not in page
    compile(page, "begun_sparse.py", "exec")
    case = (tmp_path / "tests/families/begun_sparse.py").read_text()
    assert '@case("begun_sparse", moe=True)' in case
    compile(case, "begun_sparse.py", "exec")


def test_what_a_plan_has_no_place_for_is_said(tmp_path, capsys):
    main(["new-family", "looped", "--from-transformers", "dory", "--into", str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("no place for: layers.{i}.self_attn.sqk (4096,)", "DoryL2Norm", "n_recurrent_loops", "run otherwise"):
        assert words in said, words
    assert "# no place for: layers.{i}.lambda_1" in (tmp_path / "looped.py").read_text()


def test_norms_under_other_names_are_found():
    from transformers import AfmoeConfig

    plan = plan_of(AfmoeConfig, new_family.fields(AfmoeConfig)[0])
    text = new_family.page_of("normed", AfmoeConfig, plan)
    assert "ef.nn.SandwichBlock(" in text and 'gate="sigmoid", window=windows[i]' in text
    assert 'rename("{rest}.pre_feedforward_layernorm.{tail}", "{rest}.pre_mlp_layernorm.{tail}")' in text
    assert "layers.{i}.mlp.expert_bias (64,)" in plan.unplaced
    compile(text, "normed.py", "exec")


def test_parts_under_other_names_are_found():
    """Experts called `block_sparse_moe`, latent attention, a correction beside the router, shared experts by their widths."""
    from transformers import GraniteMoeSWAConfig, HYV3Config

    plan = plan_of(GraniteMoeSWAConfig, new_family.fields(GraniteMoeSWAConfig)[0])
    assert plan.renames == [(".mlp.gate.", ".block_sparse_moe.router."), (".mlp.", ".block_sparse_moe.")]
    plan = plan_of(HYV3Config, new_family.fields(HYV3Config)[0])
    assert "shared_experts=ef.nn.GatedMLP(c.hidden_size, c.moe_intermediate_size * c.num_shared_experts" in plan.words
    assert plan.unplaced == [] and "scale=c.router_scaling_factor" in plan.words
    assert (".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias") in plan.renames


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bert-generation", "its config has no rope_parameters"),
        ("reformer", "its config has no num_hidden_layers"),
        ("hrm_text", "it is no decoder with layers: its HrmTextModel holds embed_tokens"),
        ("gemma4_assistant", "its config has no vocab_size"),
    ],
)
def test_why_there_is_no_plan(name, said):
    theirs = new_family.reference(name)
    with pytest.raises(ValueError, match=said):
        plan_of(theirs, new_family.fields(theirs)[0])


def test_a_page_from_anything_else(tmp_path, capsys):
    into = ["--into", str(tmp_path)]
    main(["new-family", "heard", "--from-transformers", "bark", *into])
    main(["new-family", "seen", "--from-transformers", "opt", *into])
    page = imported(tmp_path / "seen.py")
    assert page.SeenConfig().ffn_dim == 3072 and page.SeenConfig().max_position_embeddings == 2048
    compile((tmp_path / "test_seen.py").read_text(), "test_seen.py", "exec")
    imported(tmp_path / "heard.py")
    (tmp_path / "seen.py").write_text("mine")
    main(["new-family", "seen2", "--from-transformers", "opt", *into, "--force"])
    capsys.readouterr()
    for line, words in (
        (["new-family", "seen", "--from-transformers", "opt", *into], "--force"),
        (["new-family", "llama", "--from-transformers", "llama", *into], "easyfn has llama"),
        (["new-family", "other", "--from-transformers", "lama", *into], "did you mean"),
        (["new-family", "No-name", "--from-transformers", "opt", *into], "lower case"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(line)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and words in said and said.count("\n") == 1, (line, said)
    assert (tmp_path / "seen.py").read_text() == "mine"
