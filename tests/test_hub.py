"""The hub: a server on loopback that speaks the part of its protocol that huggingface_hub uses."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

import easyfn as ef

TOKEN = "hf_a_token_for_this_test"


class Hub(BaseHTTPRequestHandler):
    """Repositories as `{name: {"private": bool, "commits": {oid: {path: bytes}}, "refs": {branch: oid}}}`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        self.server.log.append(f"{self.command} {self.path}")

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"content_type": "application/json", **headers}
        self.send_response(status)
        for key, value in {"content_length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code):
        self.answer(404, {"error": code}, x_error_code=code)

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def repository(self, name):
        repo = self.server.repos.get(name)
        if repo and (not repo["private"] or self.headers.get("authorization") == f"Bearer {TOKEN}"):
            return repo
        return self.missing("RepoNotFound")

    def commit_of(self, repo, revision):
        revision = unquote(revision)
        oid = repo["refs"].get(revision, revision)
        if oid in repo["commits"]:
            return oid
        return self.missing("RevisionNotFound")

    def do_GET(self):
        path = self.path.partition("?")[0]
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            if (repo := self.repository(m[1])) and (oid := self.commit_of(repo, m[3] or "main")):
                files = repo["commits"][oid]
                if m[2] == "tree":
                    tree = [
                        {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                        for p, b in files.items()
                    ]
                    return self.answer(200, tree)
                info = {
                    "_id": "1",
                    "id": m[1],
                    "sha": oid,
                    "private": repo["private"],
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
                return self.answer(200, {**info, "modelId": m[1], "siblings": [{"rfilename": p} for p in files]})
        elif (m := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) and not path.startswith("/api"):
            if (repo := self.repository(m[1])) and (oid := self.commit_of(repo, m[2])):
                if (data := repo["commits"][oid].get(unquote(m[3]))) is None:
                    return self.answer(404, b"", x_error_code="EntryNotFound", x_repo_commit=oid)
                start = int((re.match(r"bytes=(\d+)-", self.headers.get("range") or "") or [0, 0])[1])
                facts = {
                    "etag": f'"{hashlib.sha256(data).hexdigest()}"',
                    "x_repo_commit": oid,
                    "accept_ranges": "bytes",
                }
                return self.answer(206 if start else 200, data[start:], **facts)
        else:
            self.answer(404, {"error": f"the fake hub does not know {self.path}"})

    do_HEAD = do_GET

    def do_PUT(self):
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.answer(200)

    def do_POST(self):
        path, body = self.path.partition("?")[0], self.body()
        data = json.loads(body) if body.startswith(b"{") and b"\n" not in body.strip() else {}
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "who are you?"})
        if path == "/api/repos/create":
            name = f"{data.get('organization') or 'user'}/{data['name']}"
            if name in self.server.repos:
                return self.answer(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
            empty = {
                "private": bool(data.get("private")) or data.get("visibility") == "private",
                "commits": {"0" * 40: {}},
                "refs": {"main": "0" * 40},
            }
            self.server.repos[name] = empty
            return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            refs = self.server.repos[m[1]]["refs"]
            if unquote(m[2]) in refs:
                return self.answer(409, {"error": "Reference already exists"})
            refs[unquote(m[2])] = refs["main"]
            return self.answer(200, {})
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"
            files = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in data["files"]]
            return self.answer(200, {"files": files, "commitOid": "0" * 40})
        if m := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            action = lambda oid: {"upload": {"href": f"{self.server.url}/lfs/{oid}", "header": {}}}
            objects = [{**o, "actions": action(o["oid"])} for o in data["objects"]]
            return self.answer(
                200, {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
            )
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self.commit(m[1], unquote(m[2]), [json.loads(line) for line in body.splitlines()])
        self.answer(404, {"error": f"the fake hub does not know {self.path}"})

    def commit(self, name, branch, lines):
        repo = self.server.repos[name]
        files = dict(repo["commits"][repo["refs"][branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append((value["summary"], value["description"]))
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.server.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"] and len(data) == value["size"]
                files[value["path"]] = data
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(repr((len(repo["commits"]), sorted(files))).encode()).hexdigest()
        repo["commits"][oid] = files
        pull = "create_pr=1" in self.path
        repo["refs"]["refs/pr/1" if pull else branch] = oid
        url = f"{self.server.url}/{name}"
        self.answer(
            200,
            {
                "success": True,
                "commitUrl": f"{url}/commit/{oid}",
                "commitOid": oid,
                "pullRequestUrl": f"{url}/discussions/1" if pull else None,
            },
        )


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.objects, server.log, server.messages = {}, {}, [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown(), server.server_close(), thread.join()


PROLOGUE = """
import sys, numpy as np, jax, easyfn as ef
sys.dont_write_bytecode = True
TOKEN = sys.argv[1]
def make(layers, seed=0):
    return ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                   num_attention_heads=4), key=jax.random.key(seed))
def same(a, b):
    a, b = ef.params(a), ef.params(b)
    assert list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)
def refused(error, text, **options):
    try:
        ef.load(**options)
    except error as e:
        assert text in str(e), str(e)
    else:
        raise AssertionError(f"not refused: {options}")
"""

ONLINE = """
said = {"commit_message": "First", "commit_description": "In parts"}
url = ef.push_to_hub(make(3), "user/name", private=True, token=TOKEN, max_shard_size="20KB", **said)
assert "/commit/" in url, url
refused(FileNotFoundError, "token", name_or_path="user/name")
same(ef.load("user/name", token=TOKEN), make(3))
refused(FileNotFoundError, "token", name_or_path="user/nothing", token=TOKEN)
ef.push_to_hub(make(1), "user/name", token=TOKEN)  # one file now: the shards go
same(ef.load("user/name", token=TOKEN), make(1))
same(ef.load("user/name", token=TOKEN, revision=url.rpartition("/")[2]), make(3))
ef.push_to_hub(make(2), "user/name", token=TOKEN, revision="try")
same(ef.load("user/name", token=TOKEN, revision="try"), make(2))
same(ef.load("user/name", token=TOKEN), make(1))
ef.push_to_hub(make(2, 1), "user/name", token=TOKEN, create_pr=True)
same(ef.load("user/name", token=TOKEN, revision="refs/pr/1"), make(2, 1))
assert ef.read_config("user/name", token=TOKEN).num_hidden_layers == 1
refused(ef.LoadError, "pytorch_model.bin", name_or_path="user/pickles", token=TOKEN)
refused(ef.LoadError, "config.json", name_or_path="user/empty", token=TOKEN)
refused(ef.LoadError, "outside its folder", name_or_path="user/escape", token=TOKEN)
"""

OFFLINE = """
same(ef.load("user/name"), make(1))
same(ef.load("user/name", revision="try", local_files_only=True), make(2))
refused(FileNotFoundError, "not in the cache", name_or_path="user/never")
refused(FileNotFoundError, "not in the cache", name_or_path="user/name", revision="never")
"""


WORDS = """
import pathlib, tokenizers
from easyfn.cli import main
there = pathlib.Path(sys.argv[2])
read = lambda folder: {p.relative_to(folder).as_posix(): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}
words = {name: data for name, data in read(there / "source").items() if name != "notes.txt"}
assert len(words) == 4
ef.push_to_hub(make(1), "user/words", token=TOKEN, tokenizer=there / "source")
ef.push_to_hub(make(1), "user/made", token=TOKEN, tokenizer=tokenizers.Tokenizer.from_str(words["tokenizer.json"].decode()))
ef.push_to_hub(make(1), "user/bare", token=TOKEN)
assert ef.tokenizer("user/made").encode("b a").ids == ef.tokenizer("user/words").encode("b a").ids == [1, 0]
model = ef.load("user/words")
same(model, make(1))
out = ef.save(model, there / "out", tokenizer="user/words")
wanted = {*words, "config.json", "model.safetensors"}
assert set(read(out)) == wanted and all(read(out)[name] == data for name, data in words.items())
assert ef.chat_template("user/words")([{"role": "user", "content": "Hi"}]) == "<s>Hi"
assert ef.chat_template("user/bare") is None
main(["convert", "user/words", str(there / "converted"), "--dtype", "bfloat16"])
main(["quantize", "user/words", str(there / "small"), "--method", "int8"])
main(["convert", "user/bare", str(there / "bare")])
assert set(read(there / "converted")) == set(read(there / "small")) == wanted
assert set(read(there / "bare")) == {"config.json", "model.safetensors"}
try:
    ef.save(model, there / "refused", tokenizer="user/bare")
except FileNotFoundError as error:
    assert "'user/bare' has no file of a tokenizer" in str(error), error
assert not (there / "refused").exists()
"""


def run(program, tmp_path, **environment):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XLA_"))},
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program, TOKEN, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_push_and_load_online_then_offline(hub, tmp_path):
    config = json.dumps(
        {
            "model_type": "llama",
            "vocab_size": 4,
            "hidden_size": 4,
            "intermediate_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
    ).encode()
    index = json.dumps({"weight_map": {"model.norm.weight": "../../secret"}}).encode()
    for name, files in {
        "user/pickles": {"config.json": config, "pytorch_model.bin": b"x"},
        "user/empty": {"README.md": b"x"},
        "user/escape": {"config.json": config, "model.safetensors.index.json": index},
    }.items():
        hub.repos[name] = {"private": False, "commits": {"1" * 40: files}, "refs": {"main": "1" * 40}}
    run(ONLINE, tmp_path, HF_ENDPOINT=hub.url)
    repo = hub.repos["user/name"]
    assert repo["private"] and hub.messages[0] == ("First", "In parts")
    first = repo["commits"][list(repo["commits"])[1]]
    assert "model.safetensors.index.json" in first and len(first) > 4
    assert sorted(repo["commits"][repo["refs"]["main"]]) == [
        ".gitattributes",
        "config.json",
        "model.safetensors",
    ] or sorted(repo["commits"][repo["refs"]["main"]]) == ["config.json", "model.safetensors"]
    assert not any("pytorch_model.bin" in line for line in hub.log if "resolve" in line)
    hub.shutdown()
    run(OFFLINE, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")


def test_the_words_of_a_repository_go_with_its_model(hub, tmp_path):
    """Pushed with a model, and carried on to what is made of it: by `tokenizer=` and by the commands."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    (source / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (source / "additional_chat_templates/tools.jinja").write_text("tools")
    (source / "notes.txt").write_text("no words")
    done = run(WORDS, tmp_path, HF_ENDPOINT=hub.url)
    assert done.stderr.count("no tokenizer was written") == 1
    main = hub.repos["user/words"]["refs"]["main"]
    assert "notes.txt" not in hub.repos["user/words"]["commits"][main]


def test_no_network_is_told_at_once(monkeypatch, tmp_path):
    """The hub is tried once: huggingface_hub's own tries take 23 s."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    for name, options in {"nothere": {}, "user/name": {"gguf_file": "model.gguf"}}.items():
        with pytest.raises(FileNotFoundError, match=f"'{name}' is no local folder.*could not be asked"):
            ef.load(name, cache_dir=tmp_path, **options)
    assert not waits
