"""The `cortex` command line.

Belongs here: what an operator types and reads. `main.py` registers the commands; each command has its file in
`commands/`, with its options and what it does; what it prints is in `views/`. Shared by the commands: `options.py`
(options and settings), `api_client.py` (HTTP to a running gateway), `terminal.py` (console and tables).

Does not belong here: any rule. A command calls the package that owns the rule, or asks the gateway over HTTP.

Read `main.py` first.
"""
