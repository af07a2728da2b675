"""Waits until a gateway has an edit of `models.toml` in force, and until its aliases have moved. Blocking."""

from __future__ import annotations

import time
from typing import Any

import httpx

from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files.locked_edit import FileEdit
from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.commands.aliases.alias_edit import DONE, NO_GATEWAY, NOT_IN_FORCE, AliasEditor, retargeted
from gateway.cli.source.editable_file import AliasCommandError
from gateway.cli.terminal import Progress
from gateway.cli.views.alias_view import swap_text

__all__ = ["EditFollower", "follow", "retry"]

IN_FORCE_WITHIN_S = 10.0  # a gateway notices a change within 0.1 s, or at its next poll 2 s later
POLL_S = 0.05
SWAP_POLL_S = 0.25


def follow(editor: AliasEditor, done: FileEdit, aliases: set[str] | None, *, wait: bool) -> int:
    """Report the change, and wait until it is in force; return the exit code.

    Args:
        editor: The editor that made the edit.
        done: The edit. If it changed nothing, swaps of the aliases that failed are tried again.
        aliases: The aliases whose swaps are reported; None for all whose target changed.
        wait: Wait also until those swaps are complete.
    """
    return EditFollower(editor).follow(done, aliases, wait=wait)


def retry(editor: AliasEditor, alias: str, *, wait: bool) -> int:
    """Try the failed swap of an alias again; return the exit code. Raises AliasCommandError."""
    with api_client.open_client() as client:
        return EditFollower(editor).retry(client, alias, wait=wait)


class EditFollower:
    """Follows one edit."""

    def __init__(self, editor: AliasEditor) -> None:
        self._editor = editor
        self._report = editor.report
        self._gateway = editor.gateway

    def follow(self, done: FileEdit, aliases: set[str] | None, *, wait: bool) -> int:
        """See `follow` above."""
        with api_client.open_client() as client:
            if not done:
                return self._follow_no_change(client, done, aliases or set(), wait=wait)
            changes = self._editor.report_changes(done)
            began = time.monotonic()
            self._request_reload(client)
            health = self._wait_until_in_force(client, done)
            if isinstance(health, int):
                return health
            took_ms = (time.monotonic() - began) * 1000
            self._report(f"in force: generation {health['catalogue']['generation']}, after {took_ms:.0f} ms")
            return self.follow_swaps(client, health, aliases or retargeted(changes), wait=wait)

    # Nothing was written ..............................................................................................

    def _follow_no_change(self, client: httpx.Client, done: FileEdit, aliases: set[str], *, wait: bool) -> int:
        """The file says so already. The alias may not have moved all the same."""
        self._report(f"no change: {self._editor.file.name} has this content already; nothing was written")
        self._request_reload(client)
        health = self._wait_until_in_force(client, done)
        if isinstance(health, int):
            return health
        stuck = [swap for swap in health.get("swaps", ()) if swap["alias"] in aliases and swap["state"] == "failed"]
        for swap in stuck:
            try:
                self._report(swap_text(swap))
                self._post_retry(client, swap["alias"])
                self._report(f"{swap['alias']}: trying again")
                health = api_client.get_health(client, self._gateway)
            except (ApiError, AliasCommandError) as error:
                self._report(f"cannot try again: {error}")
                return NOT_IN_FORCE
        return self.follow_swaps(client, health, aliases, wait=wait)

    def retry(self, client: httpx.Client, alias: str, *, wait: bool) -> int:
        """See `retry` above."""
        try:
            self._post_retry(client, alias)
            self._report(f"{alias}: trying again")
            return self.follow_swaps(client, api_client.get_health(client, self._gateway), {alias}, wait=wait)
        except ApiError as error:
            if error.message is None:
                self._report(str(error))
                return NO_GATEWAY
            raise AliasCommandError(error.message) from error

    def _post_retry(self, client: httpx.Client, alias: str) -> None:
        url = f"/admin/swaps/{api_client.segment(alias)}/retry"
        api_client.post(client, self._gateway.admin + url, ("warming",), token=self._gateway.required_token())

    # Waiting ..........................................................................................................

    def _request_reload(self, client: httpx.Client) -> None:
        """Have the gateway read the file now; without the token it notices the change by itself."""
        if self._gateway.token is None:
            return
        try:
            api_client.post(client, f"{self._gateway.admin}/admin/reload", ("result",), token=self._gateway.token)
        except ApiError as error:
            if error.status in {401, 403, 404}:
                self._report(f"warning: {error}; the gateway will notice the change by itself")

    def _wait_until_in_force(self, client: httpx.Client, done: FileEdit) -> dict[str, Any] | int:
        """The gateway's health once the edit is in force, or the exit code if it does not get there."""
        give_up_at = time.monotonic() + IN_FORCE_WITHIN_S
        while True:
            try:
                health = api_client.get_health(client, self._gateway)
            except ApiError as error:
                self._report(f"the file is written, but no gateway answers: {error}; it reads the file when it starts")
                return NO_GATEWAY
            if health["catalogue"].get("digest") == done.digest:
                return health
            if self._is_in_force_with_more(done, health["catalogue"].get("digest")):
                self._report("the file has been changed again since; this change is in force with it")
                return health
            if time.monotonic() >= give_up_at:
                break
            time.sleep(POLL_S)
        catalogue = health["catalogue"]
        if catalogue["error"] is not None:
            reason = f"the gateway refuses it: {catalogue['error']['message']}"
        elif not self._editor.file.is_current(done.after):
            reason = "the file has been changed again since"
        else:
            reason = f"the gateway did not apply it within {IN_FORCE_WITHIN_S:g} s; see its log"
        self._report(
            f"the file is written, but not in force: {reason} (generation {catalogue['generation']} is in force)"
        )
        return NOT_IN_FORCE

    def _is_in_force_with_more(self, done: FileEdit, digest: str | None) -> bool:
        """Whether a later file is in force that has this change too: another operator edited other aliases since."""
        if digest is None or not done or self._editor.file.is_current(done.after):
            return False
        in_force = self._editor.file.content_in_force(digest)
        return in_force is not None and contains_change(in_force, done)

    def follow_swaps(self, client: httpx.Client, health: dict[str, Any], aliases: set[str], *, wait: bool) -> int:
        """Report the aliases whose swap is not complete; with `wait`, until it is. Returns the exit code."""
        reported: dict[str, str] = {}
        swapping: set[str] = set()
        with Progress(self._report) as progress:
            while True:
                swaps = [swap for swap in health.get("swaps", ()) if swap["alias"] in aliases]
                for swap in swaps:
                    text = swap_text(swap)
                    if reported.get(swap["alias"]) != text:
                        reported[swap["alias"]] = text
                        progress.report(text)
                    progress.show(swap["alias"], swap.get("elapsed_s"), swap.get("allowed_s"))
                pending = {swap["alias"] for swap in swaps}
                for name in sorted(swapping - pending):
                    progress.report(f"{name} has moved: generation {health['catalogue']['generation']}")
                swapping = pending
                if any(swap["state"] == "failed" for swap in swaps):
                    return NOT_IN_FORCE
                if not swaps or not wait:
                    return DONE
                time.sleep(SWAP_POLL_S)
                try:
                    health = api_client.get_health(client, self._gateway)
                except ApiError as error:
                    progress.report(f"the gateway stopped answering: {error}")
                    return NO_GATEWAY


def contains_change(in_force: bytes, done: FileEdit) -> bool:
    """Whether everything that an edit changed is so in another file, too."""
    try:
        now, after = (_parse(data) for data in (in_force, done.after))
    except FaultyFile:
        return False
    try:
        before = _parse(done.before)
    except FaultyFile:
        before = Catalogue()
    same_aliases = all(
        now.aliases.get(name) == after.aliases.get(name)
        for name in before.aliases.keys() | after.aliases.keys()
        if before.aliases.get(name) != after.aliases.get(name)
    )
    return same_aliases and all(
        now.models.get(name) == after.models.get(name)
        for name in before.models.keys() | after.models.keys()
        if before.models.get(name) != after.models.get(name)
    )


def _parse(data: bytes) -> Catalogue:
    return parse(data, path="models.toml", generation=0, loaded_at=0.0)
