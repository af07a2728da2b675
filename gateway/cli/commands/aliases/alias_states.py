"""How the aliases of `models.toml` stand with the gateway: in force, swapping, or being rolled out. Blocking."""

from __future__ import annotations

from typing import Any

from catalogue.models import Alias
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.rollout_state import Rollout
from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.commands.aliases.alias_edit import AliasEditor
from gateway.cli.source.editable_file import AliasCommandError
from gateway.cli.terminal import print_error
from gateway.cli.views.alias_view import swap_text

__all__ = ["AliasStates", "loaded_on"]


class AliasStates:
    """The aliases of the file, by name, and the state of each when this was made.

    Raises:
        AliasCommandError: The file cannot be read or is faulty.
    """

    def __init__(self, editor: AliasEditor) -> None:
        data, catalogue = editor.read()
        self.aliases = dict(sorted(catalogue.aliases.items()))
        self._health = editor.health()
        self._digest = digest_of(data)
        self._rollouts = _running_rollouts(editor)
        swaps = () if self._health is None else self._health.get("swaps", ())
        self._swaps: dict[str, dict[str, Any]] = {swap["alias"]: swap for swap in swaps}

    def state(self, alias: Alias) -> str:
        """The state in a few words, for tables and JSON."""
        if self._health is None:
            return "no gateway answers"
        if self._health["catalogue"].get("digest") != self._digest:
            error = self._health["catalogue"]["error"]
            return "not in force" + ("" if error is None else ": the gateway refuses the file")
        swap, rollout = self._swaps.get(alias.name), self._rollouts.get(alias.name)
        state = "in force" if swap is None else swap_text(swap)
        if rollout is None:
            return state
        step = f"step {rollout.step + 1} of {len(rollout.steps)}" if rollout.step >= 0 else "about to begin"
        return f"{state}; being rolled out to {rollout.target}: {step}"


def _running_rollouts(editor: AliasEditor) -> dict[str, Rollout]:
    try:
        return editor.running_rollouts()
    except AliasCommandError as error:  # the aliases can be shown all the same
        print_error(f"warning: {error}")
        return {}


def loaded_on(editor: AliasEditor, alias: Alias) -> dict[str, list[str]]:
    """For each target the neurons that have it and its status there; empty if the gateway does not answer."""
    try:
        with api_client.open_client() as client:
            models = api_client.get_models(client, editor.gateway)
    except ApiError:
        return {}
    locations = {model["id"]: model["locations"] for model in models if model.get("alias_of") is None}
    return {
        target.model: [f"{place['node']} {place['status']}" for place in locations.get(target.model, ())]
        for target in alias.targets
    }
