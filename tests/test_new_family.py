"""`easyfn new-family`: a page that can be imported as it stands, with the reference's fields; nothing is overwritten."""

import importlib.util
import sys

import pytest

import easyfn as ef
from easyfn.cli import main


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
    assert "Qwen2Config" in capsys.readouterr().out
    page, reference = imported(tmp_path / "begun.py"), Qwen2Config()
    config = page.BegunConfig()
    for name in ("hidden_size", "num_key_value_heads", "use_sliding_window", "max_window_layers", "rms_norm_eps"):
        assert getattr(config, name) == getattr(reference, name), name
    assert config.rope_parameters["rope_theta"] == reference.rope_parameters["rope_theta"]
    monkeypatch.syspath_prepend(tmp_path)
    case = imported(tmp_path / "test_begun.py")
    model = ef.abstract(page.BegunConfig(**case.SIZES))
    theirs = {name: tuple(value.shape) for name, value in case.module().state_dict().items()}
    ours = {name: value.shape for name, value in ef.params(model).items()}
    assert ours.items() <= theirs.items() and "model.layers.2.mlp.up_proj.weight" in ours
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2 and "--force" in capsys.readouterr().err


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
