"""How an attempt fails before the client has seen any of the answer, and what a request has collected of that."""

from __future__ import annotations

import math

import msgspec

from gateway import errors
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.route import Route

__all__ = ["AttemptFailures", "RefusedByUpstream", "Retriable", "gateway_fault", "is_connect_failure"]


class Retriable(Exception):
    """The attempt failed and another replica may still answer.

    Attributes:
        error: What the client gets if no other replica answers.
        refusal: The neuron's error response, if it sent one that goes to the client in place of `error`.
        not_loaded: The neuron does not have the model.
        unreachable: The neuron could not be reached, or did not answer in time.
    """

    def __init__(
        self,
        error: errors.GatewayError,
        *,
        refusal: UpstreamErrorResponse | None = None,
        not_loaded: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.refusal = refusal
        self.not_loaded = not_loaded
        self.unreachable = unreachable

    @property
    def may_be_the_request(self) -> bool:
        """Whether the request itself may have caused it.

        The neuron answered 5xx (not 503), reported an error inside its answer, sent malformed HTTP, or refused the
        gateway's credentials.
        """
        if self.refusal is not None:
            return self.refusal.is_failure
        return self.error.is_neurons_text or isinstance(
            self.error, errors.UpstreamMalformedResponse | errors.UpstreamAuthFailed
        )


class RefusedByUpstream(Exception):
    """The neuron refused the request as it stands (400, 413 and the like): every replica would."""

    def __init__(self, refusal: UpstreamErrorResponse, error: errors.GatewayError) -> None:
        super().__init__(error.message)
        self.refusal = refusal
        self.error = error


class AttemptFailures(msgspec.Struct):
    """The failed attempts of one request at one model.

    Attributes:
        nodes: The names of the neurons that failed.
        suspects: Failures that either the neuron or the request caused: the route, and the error's message.
        shortest_retry: Of the neurons' error responses the one with the shortest Retry-After. The client gets this one
            if every replica fails.
    """

    nodes: frozenset[str] = frozenset()
    suspects: tuple[tuple[Route, str], ...] = ()
    shortest_retry: UpstreamErrorResponse | None = None

    def add(self, route: Route, failure: Retriable) -> None:
        """Record that the attempt at `route` failed."""
        self.nodes |= {route.node}
        if failure.may_be_the_request:
            self.suspects += ((route, failure.error.message),)
        refusal, shortest = failure.refusal, self.shortest_retry
        if refusal is not None and (shortest is None or _retry_after_s(refusal) <= _retry_after_s(shortest)):
            self.shortest_retry = refusal


def _retry_after_s(refusal: UpstreamErrorResponse) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


def gateway_fault(status: int) -> errors.UpstreamError | None:
    """The error for a status that says that the gateway, not the client, must ask in another way."""
    if status in {401, 407}:
        return errors.UpstreamAuthFailed(
            f"the neuron refused the gateway's credentials ({status}): the operator must correct its api_key in "
            "cortex.toml"
        )
    if 300 <= status < 400:
        return errors.UpstreamMalformedResponse(
            f"the neuron answered with a redirect ({status}) that the gateway does not follow: the operator must "
            "correct its endpoint or base_path in cortex.toml; the log shows where it points"
        )
    return None


def is_connect_failure(error: errors.GatewayError) -> bool:
    """Whether no connection could be opened."""
    is_late = isinstance(error, errors.DeadlineExceeded) and error.param == "connect"
    return is_late or isinstance(error, errors.UpstreamUnreachable)
