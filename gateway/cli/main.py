"""The `cortex` command: names the commands, and sets the exit code of a wrong command line."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from gateway import __version__

__all__ = ["COMMANDS", "main"]

# Each command: its module in `gateway.cli.commands`, and its line in `cortex --help`. A module is imported when its
# command runs, because what the commands need takes 0.3 s of CPU to import.
COMMANDS = {
    "alias": ("aliases.alias", "Show and change aliases."),
    "audit": ("audit", "Show or verify the audit log of models.toml."),
    "bench": ("bench", "Measure TIERS, models or aliases from small to large."),
    "capture": ("capture", "Keep the texts of an alias for a while, and show them."),
    "catalogue": ("aliases.catalogue", "Show and replace the whole models.toml."),
    "check": ("check", "Check cortex.toml and models.toml, and list every fault."),
    "completion": ("completion", "Print the script that completes commands in a shell."),
    "demo": ("demo", "Run a gateway with three simulated neurons."),
    "drain": ("fleet.drain", "Drain a neuron: send it no new requests."),
    "explain": ("explain", "Explain what happened to a request."),
    "init": ("init", "Write both files for the engines found on the given hosts."),
    "key": ("access.key", "Create and change keys."),
    "load": ("fleet.load", "Load a model, and wait until it is loaded."),
    "neuron": ("neuron", "Run inference engines on this host for gateways to use."),
    "neurons": ("fleet.neurons", "Show and change the neurons of a gateway."),
    "plan": ("plan", "Show what a models.toml would change."),
    "reload": ("reload", "Have the gateway read models.toml now."),
    "requests": ("fleet.requests", "Show the running and waiting requests, or cancel one."),
    "schema": ("schema", "Print the JSON Schema of a configuration file."),
    "serve": ("serve", "Run the gateway until SIGTERM or Ctrl-C, then drain it."),
    "status": ("status", "Show problems, neurons, models and aliases."),
    "store": ("access.store", "Check, migrate or back up the database of keys and usage."),
    "top": ("top", "Show hosts, models and requests, live."),
    "undrain": ("fleet.drain", "Send requests to a drained neuron again."),
    "unload": ("fleet.load", "Unload a model, and wait until it is unloaded."),
    "usage": ("usage", "Show requests, tokens and cost by key, model or day."),
}


class _LazyCommands(MutableMapping[str, click.Command]):
    """The commands by name; each is imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module, _ = COMMANDS[name]
            self._loaded[name] = getattr(import_module(f"gateway.cli.commands.{module}"), name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS | self._loaded)

    def __len__(self) -> int:
        return len(COMMANDS | self._loaded)

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]


class _Commands(click.Group):
    """A group whose commands exit with 1 for a wrong command line, instead of Click's 2.

    For several commands 2 is an answer: a typing mistake in `cortex plan` must not read as "there are changes".
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _LazyCommands()

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """As in Click, which would import every command for its first line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

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


if __name__ == "__main__":
    main()
