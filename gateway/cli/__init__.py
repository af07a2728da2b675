"""The `cortex` command line.

Belongs here: what an operator types and reads. `main.py` registers the commands. Each command has its file in
`commands/`, with its options and what it does; what it prints is in `views/`; what the demo runs is in `demo/`. The
commands share `options.py` (options and settings), `param_types.py`, `api_client.py` (HTTP to a running gateway) and
`terminal.py` (console and tables).

Does not belong here: any rule. A command calls the package that owns the rule, or asks the gateway over HTTP.

Read `main.py` first.
"""
