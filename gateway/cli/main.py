"""The `cortex` command: registers the commands, and sets the exit code of a wrong command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from gateway import __version__
from gateway.cli.commands.alias import alias
from gateway.cli.commands.audit import audit
from gateway.cli.commands.check import check
from gateway.cli.commands.demo import demo
from gateway.cli.commands.drain import drain, undrain
from gateway.cli.commands.explain import explain
from gateway.cli.commands.neuron import neuron
from gateway.cli.commands.plan import plan
from gateway.cli.commands.schema import schema
from gateway.cli.commands.serve import serve
from gateway.cli.commands.status import status

__all__ = ["main"]


class _Commands(click.Group):
    """A group whose commands exit with 1 for a wrong command line, instead of Click's 2.

    For several commands 2 is an answer: a typing mistake in `cortex plan` must not read as "there are changes".
    """

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As in Click."""
        with _usage_errors_exit_with_1():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """As in Click, which parses the command lines of subcommands here."""
        with _usage_errors_exit_with_1():
            return super().invoke(ctx)


@contextmanager
def _usage_errors_exit_with_1() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.exit_code = 1  # type: ignore[misc]  # a class variable, which Click reads from the instance
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortex")
def main() -> None:
    """One address in front of your GPU hosts: OpenAI- and Anthropic-compatible, with aliases and hot swaps."""


main.add_command(alias)
main.add_command(audit)
main.add_command(check)
main.add_command(demo)
main.add_command(drain)
main.add_command(explain)
main.add_command(neuron)
main.add_command(plan)
main.add_command(schema)
main.add_command(serve)
main.add_command(status)
main.add_command(undrain)


if __name__ == "__main__":
    main()
