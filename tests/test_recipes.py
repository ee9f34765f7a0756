"""Recipes of the shell: options, resuming exactly, what happens when one is stopped or told something wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

import easyfn as ef
from easyfn.cli import main, running
from easyfn.cli.checked import stoppable

STEPS = ["--steps", "6", "--save-every", "2", "--batch-size", "2", "--length", "16", "--rank", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a random Llama whose tokens are bytes, texts, pairs and prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = ef.models.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    ef.save(ef.init(config, key=jax.random.key(0)), tmp_path / "llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write("pairs.jsonl", [{"prompt": f"{n}: ", "chosen": "aaaa", "rejected": "bbbb"} for n in range(8)])
    write("prompts.jsonl", [{"prompt": "ab" * (1 + n % 3), "want": "a"} for n in range(8)])
    (tmp_path / "reward.py").write_text(
        "def share(texts, examples):\n"
        "    return [t.count(e['want']) / max(len(t), 1) for t, e in zip(texts, examples)]\n"
        "def short(texts, examples):\n    return [1.0]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(out):
    return [json.loads(line) for line in Path(f"{out}.run/metrics.jsonl").read_text().splitlines()]


def losses(out):
    return {line["step"]: line["loss"] for line in told(out) if "loss" in line}


def same(a, b):
    for path, leaf in ef.params(ef.load_adapter(ef.load("llama"), a)).items():
        np.testing.assert_array_equal(leaf, ef.params(ef.load_adapter(ef.load("llama"), b))[path], err_msg=path)


def stopping(monkeypatch, at, act):
    """`act()` while step `at` runs."""
    one = running.Loop._one

    def watched(self, n):
        if n == at:
            act()
        return one(self, n)

    monkeypatch.setattr(running.Loop, "_one", watched)


class Killed(BaseException):
    pass


def die():
    raise Killed


def test_resumes_exactly(here, monkeypatch, capsys):
    """Stopped by Ctrl-C, by a crash, and not at all: the same weights and the same metrics."""
    more = ["--eval-fraction", "0.2", "--eval-every", "3"]
    main(["finetune", "llama", "text.txt", "whole", *STEPS, *more])
    assert "loss" in capsys.readouterr().out and Path("whole.run/curve.png").exists()
    assert [line["step"] for line in told("whole") if "eval_loss" in line] == [0, 3, 6]
    with monkeypatch.context() as patch:
        stopping(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as stopped:
            main(["finetune", "llama", "text.txt", "parts", *STEPS, *more])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "stopped at step 3 of 6" in said and "easyfn finetune parts.run/recipe.json --resume" in said
    assert ef.saved_steps("parts.run/checkpoints") == (2, 3) and not Path("parts").exists()
    with monkeypatch.context() as patch:
        stopping(patch, 6, die)
        with pytest.raises(Killed):
            main(["finetune", "parts.run/recipe.json", "--resume"])
    assert max(losses("parts")) == 5
    main(["finetune", "parts.run/recipe.json", "--resume"])  # steps 5 and 6, from the checkpoint of step 4
    assert losses("parts") == losses("whole") and len(told("parts")) == len(told("whole"))
    same("parts", "whole")
    main(["finetune", "parts.run/recipe.json", "--resume", "--steps", "7"])
    assert "--steps 7, not 6: from here on the learning rate of a run so long" in capsys.readouterr().err


class Tracker(ModuleType):
    """wandb, trackio and tensorboard at once, as far as a run calls them: their signatures are those of 0.31, 0.43 and 2.20."""

    def __init__(self):
        super().__init__("tracker")
        self.heard, self.begun, self.ended = [], [], 0

    def init(self, project, name, config, **more):
        self.begun.append((project, name, config["steps"], sorted(more)))
        return SimpleNamespace(log=lambda metrics, step: self.heard.append((step, metrics)), finish=self.finish)

    def finish(self):
        self.ended += 1

    def Writer(self, folder):
        scalar = lambda tag, data, step: self.heard.append((step, {tag: data}))
        return SimpleNamespace(add_scalar=scalar, flush=lambda: None, close=self.finish)


def test_every_recipe_runs(here, monkeypatch, capsys):
    seen = {name: Tracker() for name in ("wandb", "trackio", "tensorboard.summary")}
    for name, module in seen.items():
        monkeypatch.setitem(sys.modules, name, module)
    track = lambda name: ["--track", name]
    Path("told.py").write_text("heard = []\ndef log(step, metrics):\n    print('heard', step, metrics['loss'])\n")
    main(["pretrain", "llama", "text.txt", "new", *STEPS[:-2], "--learning-rate", "0.01", "--dtype", "bfloat16",
          *track("told.py:log")])  # fmt: skip
    assert capsys.readouterr().out.count("heard") == 6
    assert all(0 <= line["mfu"] < 1.5 for line in told("new")) and told("new")[-1]["mfu"] > 0
    assert losses("new")[6] < losses("new")[1] and ef.can_generate(ef.load("new"))
    assert Path("new/tokenizer.json").exists()
    main(["dpo", "llama", "pairs.jsonl", "dpo", *STEPS, "--eval-data", "pairs.jsonl", "--learning-rate", "0.01",
          "--peak", "1e7", *track("wandb")])  # fmt: skip
    numbers = told("dpo")
    assert seen["wandb"].heard == [(line.pop("step"), line) for line in map(dict, numbers)] and seen["wandb"].ended == 1
    assert seen["wandb"].begun == [("easyfn", "dpo", 6, ["dir"])]
    assert numbers[-1]["eval_loss"] < numbers[0]["eval_loss"] and "accuracy" in numbers[1]
    Path("grpo.yaml").write_text(
        "model: llama\ndata: prompts.jsonl\nout: grpo\nreward: reward.py:share\ngroup-size: 4\nmax_new_tokens: 4\n"
        "steps: 3\nbatch_size: 2\nlength: 8\nrank: 2\nlearning_rate: 1e-2\n"
    )
    main(["grpo", "grpo.yaml", "--steps", "2", *track("trackio")])
    assert [set(line) >= {"reward", "reward_std", "equal_groups", "kl"} for line in told("grpo")] == [True, True]
    assert len(seen["trackio"].heard) == 2 and seen["trackio"].begun[0][1] == "grpo" and seen["trackio"].ended == 1
    main(["distill", "new", "text.txt", "student", *STEPS, "--teacher", "llama", "--rank", "0", "--beta", "0.5",
          *track("tensorboard")])  # fmt: skip
    assert (6, {"loss": losses("student")[6]}) in seen["tensorboard.summary"].heard
    assert seen["tensorboard.summary"].ended == 1
    for name in ("wandb", "tensorboard.summary", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SystemExit, match=rf"easyfn\[{name.partition('.')[0]}\]"):
            main(["finetune", "llama", "text.txt", "untold", *STEPS, *track(name.partition(".")[0])])
    assert not Path("untold.run").exists()
    assert losses("student")[6] < losses("student")[1]
    capsys.readouterr()
    main(["finetune", "llama", "text.txt", "planned", *STEPS, "--dry-run"])
    assert "fits" in capsys.readouterr().out.lower() and not Path("planned.run").exists()


def test_a_plan_says_what_it_leaves_out(here, monkeypatch, capsys):
    monkeypatch.setattr(running, "_planned", lambda args, recipe: "plan")
    main(["dpo", "llama", "pairs.jsonl", "planned", "--dry-run"])
    assert "A pair is two" in capsys.readouterr().out


def test_early_stopping_keeps_the_best(here, monkeypatch, capsys):
    values = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr(running.Loop, "_one", lambda self, at: {"loss": 1.0})
    judge = running.Loop._judge

    def judged(self, at, lines, bar):
        self.measure = lambda *_, value=next(values): (value, {})
        judge(self, at, lines, bar)

    monkeypatch.setattr(running.Loop, "_judge", judged)
    main(
        [
            "finetune",
            "llama",
            "text.txt",
            "out",
            *STEPS,
            "--eval-fraction",
            "0.2",
            "--eval-every",
            "1",
            "--patience",
            "2",
        ]
    )
    assert "stopped at step 3" in capsys.readouterr().err and max(losses("out")) == 3


WRONG = {
    "nothing": (["finetune"], "needs model"),
    "data": (["finetune", "llama", "nowhere.txt", "out"], "no file nowhere.txt"),
    "steps": (["finetune", "llama", "text.txt", "out", "--steps", "-1"], "steps is 1 or more"),
    "number": (["finetune", "llama", "text.txt", "out", "--learning-rate", "fast"], "learning_rate is a number"),
    "choice": (["finetune", "llama", "text.txt", "out", "--schedule", "step"], "cosine, linear, constant"),
    "key": (["finetune", "bad.yaml"], "did you mean 'learning_rate'"),
    "yaml": (["finetune", "broken.yaml"], "is no YAML"),
    "place": (["finetune", "llama", "text.txt", "llama"], "choose another folder"),
    "there": (["finetune", "llama", "text.txt", "full"], "--force"),
    "resume": (["finetune", "llama", "text.txt", "out", "--resume"], "no run to go on with"),
    "rows": (["finetune", "llama", "text.txt", "out", "--length", "400"], "fewer than one batch"),
    "patience": (["finetune", "llama", "text.txt", "out", "--patience", "2"], "eval_fraction"),
    "pairs": (["dpo", "llama", "prompts.jsonl", "out"], "example 1"),
    "a text": (["dpo", "llama", "text.txt", "out"], "dpo learns from pairs (chosen, rejected), in a .jsonl"),
    "reward": (["grpo", "llama", "prompts.jsonl", "out"], "needs reward"),
    "function": (["grpo", "llama", "prompts.jsonl", "out", "--reward", "reward.py:nothing"], "not found"),
    "track": (["finetune", "llama", "text.txt", "out", "--track", "wandbb"], "track is wandb, tensorboard, trackio"),
    "teacher": (["distill", "llama", "text.txt", "out"], "needs teacher"),
    "quantize": (["finetune", "llama", "text.txt", "out", "--quantize", "nf4", "--rank", "0"], "rank"),
}


@pytest.mark.quick("cli", "wrong use is one line")
def test_wrong_use_is_one_line_and_writes_nothing(here, capsys):
    Path("bad.yaml").write_text("model: llama\nlearning_rat: 1\n")
    Path("broken.yaml").write_text("a: [1\n")
    Path("full").mkdir()
    Path("full/kept").write_text("")
    before = sorted(str(p) for p in here.rglob("*"))
    for name, (line, words) in WRONG.items():
        with pytest.raises(SystemExit) as stopped:
            main(line)
        said = capsys.readouterr()
        assert stopped.value.code == 2 and words in said.err and not said.out, (name, said)
        assert said.err.count("\n") == 1, (name, said.err)
    assert sorted(str(p) for p in here.rglob("*")) == before


def test_killed(here):
    """kill -9 between checkpoints: the run goes on from the last one."""
    steps = ["--steps", "400", "--save-every", "5", "--batch-size", "2", "--length", "16", "--rank", "2"]
    line = [sys.executable, "-m", "easyfn", "finetune", "llama", "text.txt", "out", *steps]
    source = str(Path(ef.__file__).parent.parent)
    child = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.DEVNULL)
    until = time.time() + 120
    while time.time() < until and not (saved := ef.saved_steps("out.run/checkpoints")):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reached, saved = max(losses("out")), ef.saved_steps("out.run/checkpoints")
    assert saved and reached < 400 and reached - saved[-1] <= 10  # one checkpoint may be half written
    main(["finetune", "out.run/recipe.json", "--resume", "--steps", str(saved[-1] + 2)])
    assert max(losses("out")) == saved[-1] + 2 and Path("out/adapter_model.safetensors").exists()


def test_ctrl_c_in_an_import(capsys):
    """A compiled module that is being imported makes an ImportError of it: one line, and 130, all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped, stoppable("easyfn show"):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("Encountered an error while initializing the extension.") from None
        assert stopped.value.code == 130 and capsys.readouterr().err == "\neasyfn show: stopped\n"
        with pytest.raises(ImportError, match="no such"), stoppable("easyfn show"):
            raise ImportError("no such module")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_minute(here, capsys):
    """What there is, which it is, what is missing; and the wrong calls of every command."""
    main([])
    assert "finetune" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.startswith("easyfn ")
    main(["doctor"])
    said = capsys.readouterr().out
    assert ef.__name__ in said and "devices" in said and "extra train" in said
    main(["perplexity", "llama", "text.txt", "--length", "16", "--json"])
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 5
    Path("full").mkdir()
    Path("full/kept").write_text("")
    for line, words in (
        (["generate", "llama", "a", "--temperature", "-1"], "a number from 0 on"),
        (["generate", "llama", "a", "--ids", "1,2"], "not both"),
        (["generate", "llama", "--ids", "1,b"], "token ids"),
        (["generate", "llama", "a", "--max-new-tokens", "0"], "from 1 on"),
        (["serve", "llama", "--port", "99999"], "from 0 to 65535"),
        (["quantize", "llama", "llama", "--force"], "what is read"),
        (["convert", "llama", "full"], "--force"),
        (["show"], "checkpoint"),
        (["show", "./none"], "there is no folder or file './none'"),
        (["generate", "llama", "a", "--adapter", "/no/adapter"], "there is no folder or file '/no/adapter'"),
        (["perplexity", "llama", "none.txt"], "there is no file 'none.txt'"),
        (["convert", "llama", "text.txt/out"], "text.txt, which is a file"),
        (["fine-tune"], "invalid choice"),
        (["merge", "llama", "out"], "convert CHECKPOINT OUT --adapter"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(line)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and words in said and said.count("\n") == 1, (line, said)
    (Path("llama") / "chat_template.jinja").write_text("{{ messages }}")
    main(["convert", "llama", "full", "--force"])
    assert Path("full/chat_template.jinja").exists() and Path("full/tokenizer.json").exists()


def test_chat(here, monkeypatch, capsys):
    lines = iter(["hi", "/save said.json", "/reset", "/save empty.json", "/what"])

    def typed(_):
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    with pytest.raises(SystemExit):
        main(["chat", "llama"])
    assert "--chat-template" in capsys.readouterr().err
    Path("t.jinja").write_text("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}")
    main(["chat", "llama", "--chat-template", "t.jinja", "--system", "Be short.", "--max-new-tokens", "2"])
    said = json.loads(Path("said.json").read_text())["messages"]
    assert [m["role"] for m in said] == ["system", "user", "assistant"] and said[1]["content"] == "hi"
    assert said[2]["content"] in capsys.readouterr().out
    assert len(json.loads(Path("empty.json").read_text())["messages"]) == 1
