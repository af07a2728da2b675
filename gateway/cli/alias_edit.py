"""What `cortex alias` does: edit `models.toml`, then watch the gateway take it up, and say so. Blocking.

The file is the truth: everything here could be done with an editor. A gateway that cannot be asked is no reason not to
edit; one that reads another file is.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import Fault, FaultyFile
from gateway.aliases.files import locked_edit, rollout_state, toml_edit, versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, split_weights
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.files.versions import VersionNotFound
from gateway.cli import api_client
from gateway.cli.api_client import NoAnswer
from gateway.config.settings import Listen, Settings
from gateway.files.atomic_write import CannotSave

__all__ = ["DONE", "NOT_IN_FORCE", "NO_GATEWAY", "REFUSED", "AliasCommands", "Refused", "os_user"]

# Exit codes.
DONE = 0
REFUSED = 1  # nothing was written
NO_GATEWAY = 2  # it is written, and no gateway answers
NOT_IN_FORCE = 3  # it is written, and the gateway has not taken it up, or could not move the alias

IN_FORCE_WITHIN_S = 10.0  # a gateway notices within 0.1 s, or at its next look 2 s later
LOOK_S = 0.05
SWAP_LOOK_S = 0.25

Say = Callable[[str], None]


class Refused(Exception):
    """Nothing was written; the text says why, a line for each reason."""


def os_user() -> str:
    """Whoever sits at this terminal, as the audit trail will name them."""
    name = _name_of(os.getuid())
    behind = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {behind})" if behind and os.geteuid() == 0 else name


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"  # in a container


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where the gateway answers; the admin API only with a token. `audit` says whether it writes what we announce."""

    endpoint: str
    admin: str
    token: str | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As its own settings have it, asked from this machine."""
        return cls(
            _from_here(settings.gateway.listen), _from_here(settings.gateway.metrics_listen), settings.admin.token
        )


def _from_here(listen: Listen) -> str:
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return f"http://{Listen(anywhere.get(listen.host, listen.host), listen.port)}"


class AliasCommands:
    """An operator's place: the file, its records, the gateway that reads it, and where to say what happens.

    `has_begun` tells whether anything may have been written: whoever is interrupted wants to know.
    """

    def __init__(self, records: CatalogueFiles, gateway: Gateway, say: Say) -> None:
        self.records = records
        self.gateway = gateway
        self._say = say
        self.has_begun = False

    @classmethod
    def of(cls, settings: Settings, say: Say) -> Self:
        """Beside the file and the gateway that these settings speak of."""
        return cls(CatalogueFiles.from_settings(settings), Gateway.of(settings), say)

    # Reading...

    def read(self) -> tuple[bytes, Catalogue]:
        """The file and what it says. Raises Refused if it is not there or not good."""
        try:
            data = self.records.models_path.read_bytes()
        except OSError as error:
            raise Refused(f"{self.records.models_path} cannot be read: {error.strerror or error}") from error
        try:
            return data, parse(data, path=str(self.records.models_path), generation=0, loaded_at=0.0)
        except FaultyFile as error:
            raise Refused(_lines(error.faults)) from error

    def health(self) -> dict[str, Any] | None:
        """What the gateway says of itself; None if it does not answer."""
        try:
            with api_client.client() as client:
                return api_client.get(client, f"{self.gateway.endpoint}/health", ("catalogue",))
        except NoAnswer:
            return None

    def running_rollouts(self) -> dict[str, Rollout]:
        """By alias. Raises Refused if the file that has them is broken."""
        return {alias: rollout for alias, rollout in self.rollouts().items() if rollout.state == "running"}

    def rollouts(self) -> dict[str, Rollout]:
        """Those that ended, too. Raises Refused as above."""
        try:
            return rollout_state.read(self.records)
        except (InvalidRolloutState, OSError) as error:
            raise Refused(str(error)) from error

    def say(self, text: str) -> None:
        """To whoever sits here."""
        self._say(text)

    # Changing...

    def point(self, name: str, target: str, percent: float, command: str, *, swap: str | None) -> FileEdit:
        """Give a model so many percent of an alias. Raises Refused."""

        def pointed(data: bytes) -> bytes:
            was = self._parsed(data).aliases.get(name)
            weights = {} if was is None else {each.model: each.weight for each in was.targets}
            return toml_edit.set_alias(data, name, split_weights(weights, target, percent), swap=swap)

        done = self._change(pointed, command)
        if target not in self._parsed(done.after).models:
            self._say(f"warning: no [[models]] table describes {target}: it is served only where it is loaded already")
        return done

    def _parsed(self, data: bytes) -> Catalogue:
        return parse(data, path=str(self.records.models_path), generation=0, loaded_at=0.0)

    def remove(self, name: str, command: str) -> FileEdit:
        """Take an alias out. Raises Refused."""
        return self._change(lambda data: toml_edit.remove_alias(data, name), command)

    def roll_back(self, name: str | None, to: str | None, command: str) -> FileEdit:
        """Put back the file, or one alias of it, as it was: before the last change, or in a version. Raises Refused."""

        def back(data: bytes) -> bytes:
            was = (
                versions.read_previous(self.records, data, name)
                if to is None
                else versions.read_version(self.records, to)
            )
            return was if name is None else toml_edit.restore_alias(data, name, was)

        return self._change(back, command)

    def _change(self, edit_: Callable[[bytes], bytes], command: str) -> FileEdit:
        self._refuse_another_file()
        self.has_begun = True
        try:
            done = locked_edit.edit_models(self.records, edit_, who=os_user(), command=command)
        except FaultyFile as error:
            raise Refused(_lines(error.faults)) from error
        except KeyError as error:
            raise Refused(f"there is no alias {error.args[0]!r} in {self.records.models_path}") from error
        except (CannotSave, CannotEdit, VersionNotFound, OSError, ValueError) as error:
            raise Refused(str(error)) from error
        if done.not_kept is not None:
            self._say(f"warning: there is no way back from this by `rollback`: {done.not_kept}")
        return done

    def _refuse_another_file(self) -> None:
        """The gateway at this address may be another: then waiting for it would be in vain, or a lie."""
        health = self.health()
        if health is None:
            return
        theirs = health["catalogue"].get("path")
        if theirs is None or not _is_same(Path(theirs), self.records.models_path):
            raise Refused(
                f"the gateway at {self.gateway.endpoint} reads {theirs}, not {self.records.models_path}:"
                " -c names its config"
            )

    # Watching...

    def see_through(self, done: FileEdit, names: set[str] | None, *, wait: bool) -> int:
        """Say what the change means, and wait until it is in force; with `wait`, until its aliases have moved, too.

        Args:
            done: What was written.
            names: Aliases whose swaps are waited for; None for all that the change is about.
            wait: Whether to.

        Returns:
            The exit code.
        """
        if not done:
            self._say("the file says so already; nothing was written")
            return DONE
        said = meaning_of(done, str(self.records.models_path))
        if said is None:
            self._say(f"{self.records.models_path}: good again, as file {done.digest[:10]}")
            said = CatalogueDiff()
        else:
            self._say(f"{self.records.models_path}: {said}")
        self._tell_ended_rollouts(said)
        began = time.monotonic()
        with api_client.client() as client:
            self._hurry(client)
            health = self._until_in_force(client, done)
            if isinstance(health, int):
                return health
            took_ms = (time.monotonic() - began) * 1000
            self._say(f"in force: generation {health['catalogue']['generation']}, after {took_ms:.0f} ms")
            return self._swaps(client, health, names or _moving(said), wait=wait)

    def _tell_ended_rollouts(self, said: CatalogueDiff) -> None:
        """By now it is written: that rollouts cannot be read is no refusal any more."""
        try:
            running = self.running_rollouts()
        except Refused as error:
            self._say(f"warning: {error}")
            return
        for name in sorted(_touched(said) & running.keys()):
            self._say(f"the rollout of {name} ends with this")

    def _hurry(self, client: httpx.Client) -> None:
        """With the token, have the gateway look now; it will in any case."""
        if self.gateway.token is not None:
            try:
                api_client.post(client, f"{self.gateway.admin}/admin/reload", ("result",), token=self.gateway.token)
            except NoAnswer as error:
                if error.status in {401, 404}:
                    self._say(f"warning: {error}")

    def _until_in_force(self, client: httpx.Client, done: FileEdit) -> dict[str, Any] | int:
        """The gateway's health once the file is in force, or the exit code that says why it is not."""
        give_up_at = time.monotonic() + IN_FORCE_WITHIN_S
        while True:
            try:
                health = api_client.get(client, f"{self.gateway.endpoint}/health", ("catalogue",))
            except NoAnswer as error:
                self._say(f"written, but not seen to be in force: {error}. It is what the next gateway will start with")
                return NO_GATEWAY
            if health["catalogue"].get("digest") == done.digest:
                return health
            if time.monotonic() >= give_up_at:
                break
            time.sleep(LOOK_S)
        return self._not_in_force(done, health)

    def _not_in_force(self, done: FileEdit, health: dict[str, Any]) -> int:
        catalogue = health["catalogue"]
        told = "the gateway has not taken it up"
        if catalogue["error"] is not None:
            told = f"the gateway refuses it: {catalogue['error']['message']}"
        elif not self._is_still(done):
            told = "somebody has changed the file again"
        self._say(f"written, but: {told}; generation {catalogue['generation']} is in force")
        return NOT_IN_FORCE

    def _is_still(self, done: FileEdit) -> bool:
        try:
            return self.records.models_path.read_bytes() == done.after
        except OSError:
            return False

    def _swaps(self, client: httpx.Client, health: dict[str, Any], names: set[str], *, wait: bool) -> int:
        """Say which of the aliases are still on their way; with `wait`, follow them."""
        told: dict[str, str] = {}
        followed: set[str] = set()
        while True:
            swaps = [swap for swap in health.get("swaps", ()) if swap["alias"] in names]
            for swap in swaps:
                self._say_news(told, swap["alias"], words_of_swap(swap))
            here = {swap["alias"] for swap in swaps}
            for name in sorted(followed - here):
                self._say(f"{name} has moved: generation {health['catalogue']['generation']}")
            followed = here
            if any(swap["state"] == "failed" for swap in swaps):
                return NOT_IN_FORCE
            if not swaps or not wait:
                return DONE
            time.sleep(SWAP_LOOK_S)
            try:
                health = api_client.get(client, f"{self.gateway.endpoint}/health", ("catalogue",))
            except NoAnswer as error:
                self._say(f"the gateway does not answer any more: {error}")
                return NO_GATEWAY

    def _say_news(self, told: dict[str, str], name: str, words: str) -> None:
        """Seconds pass without being news."""
        if told.get(name) != words:
            told[name] = words
            self._say(words)


def meaning_of(done: FileEdit, path: str) -> CatalogueDiff | None:
    """What the change changes; None if the file was at fault before, and so meant nothing."""
    try:
        before = parse(done.before, path=path, generation=0, loaded_at=0.0)
    except FaultyFile:
        return None
    return diff(before, parse(done.after, path=path, generation=0, loaded_at=0.0))


def _touched(said: CatalogueDiff) -> set[str]:
    return _moving(said) | {alias.name for alias in said.aliases_removed}


def _moving(said: CatalogueDiff) -> set[str]:
    return {change.name for change in said.aliases_changed if change.moves_traffic}


def words_of_swap(swap: dict[str, Any]) -> str:
    """One alias that is not where its file wants it, as `/health` tells of it."""
    where = f"{swap['alias']} stays on {swap['in_force']}"
    if swap["state"] == "failed":
        return f"{where}: {swap['wanted']} could not be warmed: {swap['reason']}"
    doing = {"load": "is loaded", "probe": "is probed"}.get(swap["phase"], "can be loaded")
    because = f" ({swap['reason']})" if swap["reason"] else ""
    return f"{where} until {swap['model'] or swap['wanted']} {doing}{because}"


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _lines(faults: tuple[Fault, ...]) -> str:
    return "\n".join(str(fault) for fault in faults)
