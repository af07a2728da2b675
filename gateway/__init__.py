"""The gateway: one Trio process in front of a fleet of GPU hosts.

config      cortex.toml and the environment become frozen settings
http        HTTP/1.1 on both sides, SSE framing, sockets; knows no models
dialects    what clients and engines say: OpenAI chat, Anthropic Messages, OpenAI Responses; bytes in, bytes out, no I/O
fleet       what neurons are and have loaded; choosing a replica, queueing, loading, evicting, draining
access      keys, what each may use, and the ledger of what was used; the store of both
telemetry   what is recorded about a request: metrics, log, traces, explain
proxy       the path of one request, from its first byte to its last
aliases     the catalogue in force and every change of it: watch, plan, warm swap, rollout, audit
server      composition root, ports, public and admin routes, console, restarts
cli         the `cortex` command
files       atomic writes, file locks, the state directory
errors.py   every error that a client can get
asgi.py     names for the types of ASGI

A package imports only from those below it: cli, server, proxy and aliases, access and telemetry, dialects and fleet,
http, config, files, errors and asgi; `lint-imports` checks it. Each package's `__init__.py` says which
file to read first. Read `server/gateway.py` to see how the parts fit together, and `proxy/app.py` to follow a request.
"""

__version__ = "0.1.0"
