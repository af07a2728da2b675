"""The faults of a simulated neuron: one type per fault, and the set of faults in force. No I/O.

Each fault is for one model or for all (`"*"`), for the next `times` occasions or until it is cleared. Several may be in
force at once. Over HTTP a fault is JSON whose `fault` is the type's name in snake case: `{"fault":"drop","after":3}`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec


class SimFault(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="fault", tag=""):
    """Base of every fault. `times` is None for a fault that lasts until it is cleared."""

    model: str = "*"
    times: int | None = None

    def concerns(self, model_id: str) -> bool:
        """Whether the fault applies to this model."""
        return self.model in {"*", model_id}


class InferenceFault(SimFault, frozen=True):
    """A fault of one inference request; each request it applies to uses up one of its `times`."""


# ---- before any answer byte


class Refuse(InferenceFault, frozen=True, tag="refuse"):
    """Closes the connection once the request is read, before any byte of an answer."""

    reset: bool = False


class HttpError(InferenceFault, frozen=True, tag="http_error"):
    """Answers with an error: flat JSON, text/plain, FastAPI's `detail`, or llama.cpp's, whose `code` is a number.

    All but the first close the connection after it, unannounced. 503 with `retry_after_s`: a full neuron.
    """

    status: int = 500
    text: str = "CUDA error: an illegal memory access was encountered"
    plain: bool = False
    detail: bool = False
    numeric: bool = False
    retry_after_s: int | None = None


class NotLoaded(InferenceFault, frozen=True, tag="not_loaded"):
    """Answers 404 `model 'X' not loaded on this neuron` although `/models` says otherwise."""


class Hang(InferenceFault, frozen=True, tag="hang"):
    """Accepts the request and sends nothing; after `seconds` (None: never) goes on as usual."""

    seconds: float | None = None


class LateHeaders(InferenceFault, frozen=True, tag="late_headers"):
    """Sends a stream's headers with the first token, not before prefill."""


class Garbage(InferenceFault, frozen=True, tag="garbage"):
    """Answers with something that is not HTTP, and closes."""

    text: str = "SSH-2.0-OpenSSH_9.6\r\n\r\n"


class BigHeaders(InferenceFault, frozen=True, tag="big_headers"):
    """Answers with a header block of this size."""

    size_bytes: int = 128 * 1024


class Informational(InferenceFault, frozen=True, tag="informational"):
    """Sends 1xx responses before the real one."""

    count: int = 1
    status: int = 103


# ---- while answering


class SilentPrefill(InferenceFault, frozen=True, tag="silent_prefill"):
    """Sends headers and role chunk at once, then nothing for `seconds` more than the usual prefill."""

    seconds: float = 30.0


class Slow(InferenceFault, frozen=True, tag="slow"):
    """Everything takes `factor` times as long."""

    factor: float = 10.0


class Drop(InferenceFault, frozen=True, tag="drop"):
    """Breaks off after `after` SSE events (the role chunk is the first), or half-way through a plain body.

    `how`: FIN or RST. `cut`: between two chunks, inside a chunk's framing, or inside an SSE event at a chunk's end.
    """

    after: int = 3
    how: Literal["fin", "rst"] = "fin"
    cut: Literal["between", "chunk", "event"] = "between"


class MalformedChunk(InferenceFault, frozen=True, tag="malformed_chunk"):
    """Sends a chunk whose size is not a number, after `after` SSE events, and closes."""

    after: int = 3


class NoDone(InferenceFault, frozen=True, tag="no_done"):
    """Ends a stream without `[DONE]`."""


class OddUsage(InferenceFault, frozen=True, tag="odd_usage"):
    """Puts a stream's `usage` on the finish chunk, on a chunk with choices of its own, or nowhere."""

    where: Literal["finish", "choices", "none"] = "finish"


class WrongModel(InferenceFault, frozen=True, tag="wrong_model"):
    """Reports another `model` in the answer than the request named."""

    echo: str = "another-model@main"


class FloatCreated(InferenceFault, frozen=True, tag="float_created"):
    """Sends `created` as a float, as transformers serve does."""


class AnyModel(InferenceFault, frozen=True, tag="any_model"):
    """Accepts any model name, as llama.cpp's server does, and answers with the first loaded model."""


class RunsOn(InferenceFault, frozen=True, tag="runs_on"):
    """Does not notice a disconnect: keeps its slot until the answer is done, as transformers serve does."""


class UntilClose(InferenceFault, frozen=True, tag="until_close"):
    """Sends neither a length nor chunks: the end of the connection ends the body."""


class ContentLength(InferenceFault, frozen=True, tag="content_length"):
    """A stream with a content-length instead of chunks."""


class CloseAfter(InferenceFault, frozen=True, tag="close_after"):
    """Advertises keep-alive and closes after the answer."""

    reset: bool = False


# ---- between requests


class CloseIdle(SimFault, frozen=True, tag="close_idle"):
    """Closes a connection that was idle for this long, unannounced. `model` and `times` do not apply."""

    seconds: float = 5.0


class CloseEvery(SimFault, frozen=True, tag="close_every"):
    """Closes each connection after this many answers, unannounced. `model` and `times` do not apply."""

    requests: int = 100


# ---- the control API


class ReportStatus(SimFault, frozen=True, tag="report_status"):
    """`/models` reports this status; inference goes on as before. `times` does not apply."""

    status: str = "poisoned"


class Unservable(SimFault, frozen=True, tag="unservable"):
    """`/models` reports `servable.ok` false. `times` does not apply."""

    reason: str = "cuda_unavailable"
    detail: str | None = None


class LoadFails(SimFault, frozen=True, tag="load_fails"):
    """`/models/load` answers 400 with this text after `seconds`."""

    text: str = "failed to load weights: out of memory"
    seconds: float = 0.0


class LoadHangs(SimFault, frozen=True, tag="load_hangs"):
    """`/models/load` takes `seconds` longer (None: for ever)."""

    seconds: float | None = None


class EndpointFails(SimFault, frozen=True, tag="endpoint_fails"):
    """One management path answers with `status`; `path` is a management path such as `/health`."""

    path: str = "/health"
    status: int = 500
    text: str = "internal error"


class Unresponsive(SimFault, frozen=True, tag="unresponsive"):
    """Takes every request (`/sim` excepted) and never answers."""


class RefuseAccept(SimFault, frozen=True, tag="refuse_accept"):
    """Closes every connection as it is accepted, `/sim` too: to end it over HTTP it needs `times`."""

    reset: bool = False


AnyFault = (
    Refuse
    | HttpError
    | NotLoaded
    | Hang
    | LateHeaders
    | Garbage
    | BigHeaders
    | Informational
    | SilentPrefill
    | Slow
    | Drop
    | MalformedChunk
    | NoDone
    | OddUsage
    | WrongModel
    | FloatCreated
    | AnyModel
    | RunsOn
    | UntilClose
    | ContentLength
    | CloseAfter
    | CloseIdle
    | CloseEvery
    | ReportStatus
    | Unservable
    | LoadFails
    | LoadHangs
    | EndpointFails
    | Unresponsive
    | RefuseAccept
)

F = TypeVar("F", bound=SimFault)


class FaultPlan:
    """The faults of one request, taken from the fault book once, at its start."""

    def __init__(self, faults: list[SimFault]) -> None:
        self._by_type = {type(fault): fault for fault in faults}

    def get(self, kind: type[F]) -> F | None:
        """The fault of this kind that applies to the request, or None."""
        fault = self._by_type.get(kind)
        return fault if isinstance(fault, kind) else None

    def __contains__(self, kind: type[SimFault]) -> bool:
        return kind in self._by_type


class FaultBook:
    """The faults in force. Every method is synchronous, so exactly one request uses up a fault."""

    def __init__(self) -> None:
        self._entries: list[tuple[SimFault, list[int]]] = []  # with the remaining `times`, if limited

    def add(self, *faults: SimFault) -> None:
        """Put faults in force; a later one of the same kind wins over an earlier one."""
        self._entries.extend((fault, [] if fault.times is None else [fault.times]) for fault in faults)

    def clear(self) -> None:
        """Remove every fault."""
        self._entries.clear()

    def in_force(self) -> list[dict[str, Any]]:
        """The faults as JSON-able objects, with the remaining `times`."""
        return [{**msgspec.to_builtins(fault), "times": left[0] if left else None} for fault, left in self._entries]

    def peek(self, kind: type[F], model_id: str = "*") -> F | None:
        """The fault of this kind in force for the model, unspent."""
        for fault, _ in reversed(self._entries):
            if isinstance(fault, kind) and fault.concerns(model_id):
                return fault
        return None

    def take(self, kind: type[F], model_id: str = "*") -> F | None:
        """As `peek`, and uses up one of its times."""
        fault = self.peek(kind, model_id)
        if fault is not None:
            self._spend([fault])
        return fault

    def plan(self, model_id: str) -> FaultPlan:
        """The inference faults that apply to one request for this model; uses up one time of each."""
        faults: list[SimFault] = [
            fault for fault, _ in self._entries if isinstance(fault, InferenceFault) and fault.concerns(model_id)
        ]
        plan = FaultPlan(faults)
        self._spend([fault for fault in faults if plan.get(type(fault)) is fault])
        return plan

    def _spend(self, spent: list[SimFault]) -> None:
        kept = []
        for fault, left in self._entries:
            if left and any(fault is one for one in spent):
                left[0] -= 1
            if not left or left[0] > 0:
                kept.append((fault, left))
        self._entries = kept


_decoder: msgspec.json.Decoder[AnyFault] = msgspec.json.Decoder(AnyFault)


def parse(body: bytes) -> SimFault:
    """A fault from its JSON.

    Raises:
        msgspec.MsgspecError: not JSON, no such fault, or a parameter it does not have.
    """
    return _decoder.decode(body)
