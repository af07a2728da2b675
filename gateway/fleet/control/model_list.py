"""Model lists as servers send them: a bare array, or an object with `data` (OpenAI) or `models`.

An entry that cannot be read is left out, and the others are used: one bad entry must not take a server out of service.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from gateway.fleet.control.types import NeuronMalformed

__all__ = ["ModelListReader"]

log = structlog.get_logger("cortex.poller")

NAME_LIMIT = 512  # characters of an id. The longest names of real models have about 100
_MODEL_KEYS = ("data", "models")

T = TypeVar("T")


class ModelListReader(Generic[T]):
    """Reads the model lists of one server.

    Args:
        server: Its name or address, for the log.
        entry: The type of an entry.
        name_of: The entry's id.
    """

    def __init__(self, server: str, entry: type[T], name_of: Callable[[T], str]) -> None:
        self._server = server
        self._decoder = msgspec.json.Decoder(entry)
        self._name_of = name_of
        self._skipped = 0

    def read(self, text: bytes) -> tuple[T, ...]:
        """The usable entries, in order. Logs how many entries are left out, once until that number changes.

        Raises:
            NeuronMalformed: It is no list of models in any form, or none of its entries can be used.
        """
        entries: list[T] = []
        problem = ""
        raw_entries = _raw_entries(text)
        for raw in raw_entries:
            try:
                entries.append(self._usable(raw))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
                problem = problem or str(error)
        if raw_entries and not entries:
            raise NeuronMalformed(f"no entry of the list of models can be read: {problem}")
        skipped = len(raw_entries) - len(entries)
        if skipped != self._skipped:
            self._skipped = skipped
            if skipped:
                log.warning("model_entries_skipped", server=self._server, entries=skipped, first_problem=problem)
        return tuple(entries)

    def _usable(self, raw: msgspec.Raw) -> T:
        entry = self._decoder.decode(raw)
        name = self._name_of(entry)
        if not name.strip():
            raise ValueError("the id is empty")
        if len(name) > NAME_LIMIT:
            raise ValueError(f"the id is longer than {NAME_LIMIT} characters")
        return entry


def _raw_entries(text: bytes) -> list[msgspec.Raw]:
    text = text.removeprefix(codecs.BOM_UTF8)
    try:
        try:
            answer = _list_decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = _list_decoder.decode(_readable(text))
        if isinstance(answer, list):
            return answer
        found = [answer[key] for key in _MODEL_KEYS if key in answer]
        if not found:
            raise NeuronMalformed(f"the list of models has neither `{_MODEL_KEYS[0]}` nor `{_MODEL_KEYS[1]}`")
        # llama.cpp sends both keys. `data` is null at an Ollama without models.
        lists = (_entries_decoder.decode(entries) for entries in found)
        return next((entries for entries in lists if entries is not None), [])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise NeuronMalformed(f"the list of models cannot be read: {error}") from error


def _readable(text: bytes) -> bytes:
    """The same list with half surrogate pairs as bytes that are no UTF-8, and NaN and Infinity as strings.

    msgspec rejects a whole list for one of them; then only the entry is rejected, or nothing if the member is not read.
    """
    value = json.loads(text, parse_constant=str)
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


_list_decoder = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw])
_entries_decoder = msgspec.json.Decoder(list[msgspec.Raw] | None)
