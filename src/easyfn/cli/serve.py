"""`easyfn serve`: a checkpoint behind OpenAI's HTTP API."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from .checked import count, dtype, method, port, seconds, share, source, whole


def run(args: argparse.Namespace) -> None:
    """The server answers `/health` from the start, while a thread loads the model and compiles; signals are the main thread's."""
    from .parts import extra

    uvicorn = extra("uvicorn", "serve")
    import easyfn as ef

    door, failed = ef.serve.Door(), list[BaseException]()
    config = uvicorn.Config(
        door, host=args.host, port=args.port, timeout_graceful_shutdown=args.shutdown_timeout, ws="none"
    )
    logging.getLogger("uvicorn.error").setLevel(
        logging.WARNING
    )  # what it says when it starts is said below, when it is so
    server = uvicorn.Server(config)
    socket = server.config.bind_socket()  # before the work: the port may be taken
    socket.listen(server.config.backlog)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{socket.getsockname()[1]}"

    def prepare() -> None:
        try:
            _prepare(args, door, address)
        except BaseException as error:  # told by the main thread
            failed.append(error)
            server.should_exit = True

    def end(number: int, frame: Any) -> None:
        """Of SIGTERM, which uvicorn raises once more when it has finished: then this process ends as it should."""
        server.should_exit = True

    signal.signal(signal.SIGTERM, end)
    work = threading.Thread(target=prepare, name="easyfn-prepare", daemon=True)
    work.start()
    code = 0
    try:
        server.run(sockets=[socket])
    except KeyboardInterrupt:  # raised after what ran was finished
        code = 130
    if failed:
        raise failed[0]
    if code:
        print("easyfn serve: stopped", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if (
        work.is_alive()
    ):  # inside a compiler, which an interpreter that takes itself apart would crash; nothing is being written
        os._exit(code)
    sys.exit(code)


def _prepare(args: argparse.Namespace, door: Any, address: str) -> None:
    """Loads, compiles, and opens the door."""
    import easyfn as ef

    from .parts import tokenizer_of

    path = Path(args.checkpoint)
    name = args.model_name or (path.resolve().name if path.exists() else args.checkpoint)
    key = _keys(args)
    if key is None and not _loopback(args.host):
        print(f"easyfn serve: {args.host} is open to others, and there is no --api-key", file=sys.stderr)
    print(f"loading {args.checkpoint}; {address}/health says when it is ready", flush=True)
    tokenizer = tokenizer_of(args.checkpoint)
    template = ef.serve.chat_template(args.checkpoint, file=args.chat_template)
    model = ef.load(args.checkpoint, dtype=args.dtype, quantize=args.quantize)
    if ef.task(model) == "sentence-embedding":
        if args.adapter:
            raise ValueError("--adapter is for models that generate; merge it first: easyfn convert --adapter")
        options = {"api_key": key, "max_waiting": args.max_waiting, "length": args.max_model_length}
        options["origins"] = args.allow_origin
        door.open(ef.serve.embeddings(model, tokenizer, model_name=name, **options), None)
        print(f"{name} is served at {address}/v1/embeddings", flush=True)
        return
    processor = None if args.no_images else _processor(args.checkpoint, model)
    engine = ef.Engine(
        _adapted(model, args.adapter),
        max_batch_size=args.max_batch_size,
        max_model_length=args.max_model_length,
        page_size=args.page_size,
        num_pages=args.num_pages,
        memory_fraction=args.memory_fraction,
        prefill_chunk=args.prefill_chunk,
        max_waiting=args.max_waiting,
    )
    app = ef.serve.app(
        engine,
        tokenizer,
        model_name=name,
        chat_template=template,
        api_key=key,
        origins=args.allow_origin,
        max_seconds=args.max_seconds,
        processor=processor,
    )
    if not args.no_warm_up:
        door.stage = "warming up"
        print("warming up", flush=True)
        engine.warm_up()
    door.open(app, engine)
    print(f"{name} is served at {address}/v1", flush=True)


def _keys(args: argparse.Namespace) -> list[str] | None:
    """The keys that let clients in; `None` for everybody."""
    one = args.api_key or os.environ.get("EASYFN_API_KEY")
    keys = [one] if one else []
    if args.api_key_file is not None:
        lines = [line.strip() for line in Path(args.api_key_file).read_text("utf-8").splitlines()]
        keys += (found := [line for line in lines if line and not line.startswith("#")])
        if not found:  # an empty list would let everybody in
            raise ValueError(f"--api-key-file: {args.api_key_file} holds no key; write one in each line")
    return keys or None


def _processor(checkpoint: str, model: Any) -> Any:
    """transformers' processor of a model that reads images, if the checkpoint has one."""
    import easyfn as ef

    if not any(one.kind == "image" for one in ef.inputs(model).fields.values()):
        return None
    from .parts import extra

    extra("PIL.Image", "images")
    try:
        found = extra("transformers", "torch").AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError):
        found = None
    if getattr(found, "image_processor", None) is None:  # a tokenizer alone
        print("easyfn serve: the checkpoint has no preprocessor_config.json, so images are refused", file=sys.stderr)
        return None
    return found


def _adapted(model: Any, adapters: list[str]) -> Any:
    """`model` with one adapter for all, or with several by name."""
    import easyfn as ef

    named = dict(text.split("=", 1) for text in adapters if "=" in text)
    if not named:
        return ef.load_adapter(model, adapters[0]) if adapters else model
    if len(named) != len(adapters):
        raise ValueError(
            "--adapter is one FOLDER for all requests, or NAME=FOLDER for each of several, with different names"
        )
    return ef.load_adapters(model, named)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("serve", help="an OpenAI-compatible HTTP server")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is open to others: give an --api-key")
    p.add_argument("--port", type=port, default=8000, help="0: a free one")
    p.add_argument("--api-key", help="what clients must give (default: EASYFN_API_KEY of the environment, or none)")
    p.add_argument("--api-key-file", metavar="FILE", help="more keys, one in each line; # begins a comment")
    p.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="of web pages that may ask from a browser (CORS), several times for several; '*' for all",
    )
    p.add_argument("--max-seconds", type=seconds, help="in which a request must be done, waiting and all (504)")
    p.add_argument("--model-name", help="what clients call the model (default: its folder's name, or its hub id)")
    p.add_argument("--chat-template", metavar="FILE", help="a .jinja file (default: the checkpoint's)")
    p.add_argument("--dtype", type=dtype, help="float32, bfloat16, float16 (default: as stored)")
    p.add_argument("--quantize", type=method, help="quantize while loading: 8bit, nf4, ...")
    p.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="a PEFT adapter for all requests, or, several times, under names that clients give as model",
    )
    p.add_argument("--max-batch-size", type=whole, default=8, help="requests that run at once")
    p.add_argument("--max-model-length", type=whole, help="tokens of a prompt and its answer (default: the model's)")
    p.add_argument("--max-waiting", type=whole, default=256, help="requests that may wait; more are answered 429")
    p.add_argument("--page-size", type=whole, default=16, help="tokens of a page of the cache")
    p.add_argument("--num-pages", type=whole, help="pages of the cache")
    p.add_argument("--memory-fraction", type=share, help="of the free memory for the cache, instead of --num-pages")
    p.add_argument("--prefill-chunk", type=whole, default=128, help="prompt tokens of a step")
    p.add_argument("--no-images", action="store_true", help="refuse images, though the model reads them")
    p.add_argument("--no-warm-up", action="store_true", help="compile at the first requests, not before they may come")
    p.add_argument("--shutdown-timeout", type=count, default=30, metavar="SECONDS", help="to finish what runs")
    p.set_defaults(run=run)
