"""`cortex completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    bash: eval "$(cortex completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc. fish: cortex completion fish >
    ~/.config/fish/completions/cortex.fish
    """
    kind = get_completion_class(shell)
    if kind is None:  # a shell that this release of Click does not know
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "cortex", "_CORTEX_COMPLETE").source())
