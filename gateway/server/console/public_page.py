"""The page that the public port shows to a browser at `/`: what this is, its models, how to use it. No JavaScript."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Final

from gateway.asgi import Headers
from gateway.server.models_api import Entry

__all__ = ["PAGE_HEADERS", "public_page", "wants_html"]

SHOWN_MODELS: Final = 100

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem;
color:light-dark(#161b22,#e6eaf0);background:light-dark(#fff,#0e1116)}
h1{font-size:1.5rem;letter-spacing:-.02em;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.5rem 0}
pre,code{font-family:ui-monospace,monospace;font-size:.85rem}
pre{background:light-dark(#f0f2f5,#1e242c);padding:.8rem 1rem;border-radius:8px;overflow-x:auto}
ul{padding:0;margin:0;list-style:none;columns:18rem}li{padding:.1rem 0;overflow-wrap:anywhere}
small,.muted{color:light-dark(#56616d,#9aa5b3)}a{color:light-dark(#1f5fbf,#79aaff)}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

PAGE_HEADERS: Final[Headers] = [
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


def wants_html(accept: str) -> bool:
    """Whether a client is a browser: it names `text/html`, which API clients do not."""
    return any(part.split(";")[0].strip().lower() == "text/html" for part in accept.split(","))


def public_page(
    *, origin: str, status: str, models: Sequence[Entry] | None, needs_key: bool, console: str | None
) -> str:
    """The page.

    Args:
        origin: The address by which the browser knows this gateway, `http://host:port`. Chosen by the client.
        status: That of `/health`.
        models: What `GET /v1/models` lists; None if that needs a key.
        needs_key: Whether requests need a key.
        console: The address of the console, if the browser may be able to reach it.
    """
    key = "YOUR KEY" if needs_key else "none"
    example = (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{origin}/v1", api_key="{key}")\n'
        f'print(client.responses.create(model="{_example_model(models)}", input="Hello").output_text)'
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cortex</title>
<style>{_STYLE}</style>
<h1>cortex</h1>
<p>One address for the language models of a few GPU hosts, with the APIs of OpenAI (base URL
<code>{escape(origin)}/v1</code>) and Anthropic (base URL <code>{escape(origin)}</code>).
Status: <strong>{escape(status)}</strong>.</p>
<h2>Three lines of Python</h2>
<pre>{escape(example)}</pre>
{_key_text(needs_key=needs_key)}
<h2>Models</h2>
{_model_list(models)}
<h2>More</h2>
<p><a href="/openapi.json">openapi.json</a> describes the API. For operators:</p>
{_operator_text(console)}
</html>
"""


def _example_model(models: Sequence[Entry] | None) -> str:
    aliases = [entry.id for entry in models or () if isinstance(entry.alias_of, str)]
    return next(iter((*aliases, *(entry.id for entry in models or ()))), "MODEL")


def _key_text(*, needs_key: bool) -> str:
    return "<p>Requests need a key, which an operator of this gateway gives you.</p>" if needs_key else ""


def _model_list(models: Sequence[Entry] | None) -> str:
    if models is None:
        return "<p><code>GET /v1/models</code> with your key lists those that you may use.</p>"
    if not models:
        return "<p>There are none yet.</p>"
    aliases_first = sorted(models, key=lambda entry: not isinstance(entry.alias_of, str))
    lines = [_model(entry) for entry in aliases_first[:SHOWN_MODELS]]
    more = f"<p>And {len(models) - SHOWN_MODELS} more: see /v1/models.</p>" if len(models) > SHOWN_MODELS else ""
    return f"<ul>{''.join(lines)}</ul>{more}"


def _model(entry: Entry) -> str:
    alias = f" <small>{escape(entry.alias_of)}</small>" if isinstance(entry.alias_of, str) else ""
    loaded = "" if entry.loaded else " <small>(not loaded: its first answer takes longer)</small>"
    return f"<li><code>{escape(entry.id)}</code>{alias}{loaded}</li>"


def _operator_text(console: str | None) -> str:
    if console is None:
        return "<p>The console is on the admin port, which cannot be reached from here.</p>"
    return f'<p>The <a href="{escape(console)}">console</a> is on the admin port.</p>'
