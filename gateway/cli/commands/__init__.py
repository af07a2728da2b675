"""One file per command: its options, and what it does. `cortex alias set` is in `alias.py`, and so on.

Belongs here also: `alias_edit.py` and `alias_states.py`, which several commands of `cortex alias` use. Does not belong
here: tables, sentences about JSON, colours; those are in `gateway.cli.views`.

A new command is a file with a `click.Command`, and a line in `gateway/cli/main.py`. Importing a command must be quick:
what imports Quart is imported by the function that needs it. Read `check.py` first, the shortest.
"""
