"""A server under clients that stream, vanish, ask for too much and send rubbish: what it holds and says at the end.

    python benchmarks/soak.py --minutes 10 --clients 16 --num-pages 10 --max-waiting 8

Greedy answers are compared with `ef.generate`; at the end no page may be held, and SIGTERM under load must drain.
"""

import argparse
import collections
import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import easyfn as ef

TINY = Path(__file__).parent.parent / "examples" / "tiny"
NEW, PROMPTS = 24, 12
SCORES: dict[tuple[int, ...], tuple[float, ...]] = {}  # of prompts, as they were told first


def expected() -> list[tuple[list[int], str]]:
    """Prompts, and the texts that follow them."""
    model, tokenizer = ef.load(TINY, dtype=jnp.float32, progress=False), ef.tokenizer(TINY)
    held = np.fromfile(TINY / "held_out.u16", np.uint16).astype(int)
    prompts = [held[40 * i : 40 * i + 4 + 3 * i].tolist() for i in range(PROMPTS)]
    width = max(map(len, prompts))
    ids = np.array([[0] * (width - len(p)) + p for p in prompts])
    mask = np.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1}
    after = np.asarray(ef.generate(model, ids, attention_mask=mask, **options).new_tokens).tolist()
    whole = [tokenizer.decode([*p[-4:], *new], skip_special_tokens=True) for p, new in zip(prompts, after, strict=True)]
    before = [tokenizer.decode(p[-4:], skip_special_tokens=True) for p in prompts]
    return [(p, w[len(b) :]) for p, w, b in zip(prompts, whole, before, strict=True)]


class Client(threading.Thread):
    """One that asks for something else each time."""

    def __init__(self, port: int, seed: int, known: list[tuple[list[int], str]], until: list[float]) -> None:
        super().__init__(daemon=True)
        self.port, self.known, self.until = port, known, until
        self.draw, self.seen, self.wrong = random.Random(seed), collections.Counter(), []
        self.times: list[float] = []

    def run(self) -> None:
        while time.monotonic() < self.until[0]:
            kind = self.draw.choice(
                ["greedy"] * 4
                + [
                    "stream",
                    "stream",
                    "vanish",
                    "rubbish",
                    "sampled",
                    "scores",
                    "burst",
                    "echo",
                    "late",
                    "schema",
                    "response",
                ]
            )
            try:
                self.seen[f"{kind} {getattr(self, kind)()}"] += 1
            except ConnectionRefusedError:  # it has ended
                return
            except (OSError, http.client.HTTPException) as error:
                self.seen[f"{kind} {type(error).__name__}"] += 1

    def post(self, body: object, read: bool = True, path: str = "/v1/completions") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = body if isinstance(body, bytes) else json.dumps({"model": "tiny", **body}).encode()
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read() if read else answer.read(200)
        finally:
            connection.close()

    def ask(self) -> tuple[dict, str]:
        ids, text = self.draw.choice(self.known)
        return {"prompt": ids, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}, text

    def judge(self, got: str, want: str) -> None:
        if got != want:
            self.wrong.append((got, want))

    def greedy(self) -> int:
        body, want = self.ask()
        start = time.monotonic()
        status, data = self.post(body)
        if status == 200:
            self.times.append(time.monotonic() - start)
            self.judge(json.loads(data)["choices"][0]["text"], want)
        return status

    def stream(self) -> int:
        body, want = self.ask()
        status, data = self.post({**body, "stream": True})
        if status == 200:
            pieces = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line.startswith("data: {")]
            self.judge("".join(c["text"] for p in pieces for c in p["choices"]), want)
        return status

    def vanish(self) -> int:
        return self.post({**self.ask()[0], "stream": True, "max_tokens": 60}, read=False)[0]

    def scores(self) -> int:
        return self.post({**self.ask()[0], "logprobs": 5})[0]

    def sampled(self) -> int:
        return self.post({**self.ask()[0], "temperature": 1.2, "seed": self.draw.randint(-9, 9), "n": 2})[0]

    def echo(self) -> int:
        body, _ = self.ask()
        status, data = self.post({**body, "max_tokens": 0, "echo": True, "logprobs": 1})
        if status == 200:
            scores = tuple(json.loads(data)["choices"][0]["logprobs"]["token_logprobs"][1:])
            first = SCORES.setdefault(tuple(body["prompt"]), scores)  # whatever it ran beside
            self.judge(str(np.allclose(first, scores, atol=1e-4)), "True")
        return status

    def late(self) -> int:
        return self.post({**self.ask()[0], "max_tokens": 60, "max_seconds": 0.2})[0]

    def schema(self) -> int:
        most = self.draw.choice([4, 8, 5000])  # the last takes longer than it may
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "maxLength": most}}}
        return self.post({**self.ask()[0], "ignore_eos": False, "response_format": form})[0]

    def response(self) -> int:  # the model has no chat template: refused by name
        return self.post({"input": "a"}, path="/v1/responses")[0]

    def burst(self) -> int:
        return self.post({**self.ask()[0], "n": 12})[0]

    def rubbish(self) -> int:
        bad = [b"{", b"[]", {"prompt": "a", "temperature": -1}, {"prompt": [5] * 999}, {"promt": "a"}, {"prompt": [-1]}]
        return self.post(self.draw.choice(bad))[0]


def metrics(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}
    return {name: value for name, value in found.items() if "_bucket" not in name}


def memory(pid: int) -> int:
    """Resident, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--num-pages", default="20", help="few: requests give way")
    parser.add_argument("--max-waiting", default="12", help="few: requests are refused")
    args = parser.parse_args()
    known = expected()
    command = [sys.executable, "-m", "easyfn", "serve", str(TINY), "--port", "0", "--dtype", "float32"]
    sizes = ["--max-model-length", "128", "--max-batch-size", "4"]
    sizes += ["--max-waiting", args.max_waiting, "--num-pages", args.num_pages]
    server = subprocess.Popen([*command, *sizes], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = iter(server.stdout.readline, "")
    ready = next(line for line in lines if "is served" in line)
    threading.Thread(target=lambda: collections.deque(lines, 0), daemon=True).start()  # its log of accesses
    port = int(ready.rsplit(":", 1)[1].split("/")[0])
    until = [time.monotonic() + 60 * args.minutes]
    clients = [Client(port, n, known, until) for n in range(args.clients)]
    held = [memory(server.pid)]
    for client in clients:
        client.start()
    while time.monotonic() < until[0]:
        time.sleep(min(60.0, max(0.1, until[0] - time.monotonic())))
        held.append(memory(server.pid))
        print(f"{held[-1]} MiB", metrics(port), flush=True)
    for client in clients:
        client.join()
    time.sleep(1)
    after = metrics(port)
    until[0] = time.monotonic() + 600
    last = [Client(port, 100 + n, known, until) for n in range(4)]
    for client in last:
        client.start()
    time.sleep(2)
    start = time.monotonic()
    server.send_signal(signal.SIGTERM)
    code = server.wait(90)
    drained = time.monotonic() - start
    until[0] = 0.0
    seen, wrong = collections.Counter(), []
    for client in [*clients, *last]:
        seen.update(client.seen)
        wrong += client.wrong
    times = sorted(t for client in clients for t in client.times)
    print("requests", sum(seen.values()), dict(sorted(seen.items())))
    print("greedy answers that differ", len(wrong), wrong[:3])
    print("pages", after["easyfn_free_pages"], "free of", after["easyfn_num_pages"], "running", after["easyfn_running"])
    print("preemptions", after["easyfn_preemptions_total"], "rejected", after["easyfn_rejected_total"])
    print("MiB by minute", held)
    print(
        "seconds of a greedy answer: median",
        round(times[len(times) // 2], 2),
        "p99",
        round(times[int(len(times) * 0.99)], 2),
    )
    print("SIGTERM: exit code", code, "after", round(drained, 1), "s")
    if wrong or code or after["easyfn_free_pages"] != after["easyfn_num_pages"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
