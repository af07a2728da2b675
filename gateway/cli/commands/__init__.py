"""One file per command: its options, and what it does. `cortex alias` is the package `aliases`.

Belongs here also: `admin_command.py`, which runs those that ask the admin API. Does not belong here: tables, sentences
about JSON, colours; those are in `gateway.cli.views`.

A new command is a file with a `click.Command`, and a line in `gateway/cli/main.py`. Importing a command must be quick:
what imports Quart is imported by the function that needs it. Read `check.py` first, the shortest.
"""
