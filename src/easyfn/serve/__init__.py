"""An OpenAI-compatible server on an engine: `app` for your own server, `python -m easyfn serve` for one of its own.

`body`, `messages`, `images` and `asked` read what a client wants; `service` is what the server knows of its model;
`job` brings the engine's tokens to the client, `text` as text and `replies` as JSON; `app` is the application,
`embeddings` another, of an encoder without an engine; `door` answers before there is one.
"""

try:
    import starlette as starlette
except ImportError as error:
    raise ImportError('easyfn.serve needs starlette, uvicorn and jinja2: pip install "easyfn[serve]"') from error

from ..io.template import ChatTemplate as ChatTemplate
from ..io.tokenizer import chat_template as chat_template
from .app import app as app
from .door import Door as Door
from .embeddings import embeddings as embeddings
