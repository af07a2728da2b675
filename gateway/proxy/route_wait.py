"""Waiting for a replica, when every replica is full or the model is not loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway import errors
from gateway.fleet.routing.choose import Decision, Route, WaitForSlot
from gateway.fleet.routing.queue import QueueTicket
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.context import ProxyContext
from gateway.proxy.request import InferenceRequest

__all__ = ["wait_for_route"]


async def wait_for_route(
    context: ProxyContext,
    request: InferenceRequest,
    phases: PhaseDeadlines,
    ticket: QueueTicket,
    *,
    decision: Decision,
    choose_again: Callable[[], Decision],
) -> Route:
    """Wait in the model's queue until a replica has room, loading the model first if the decision says so.

    Args:
        context: The shared collaborators.
        request: An upload is read to its end meanwhile.
        phases: The `queue` and `load` deadlines of the request.
        ticket: The request's place in the queue.
        decision: What `choose` decided: anything but a route.
        choose_again: Decides anew. Take the lease on the route before the next checkpoint.

    Raises:
        GatewayError: No replica will have room in time, the queue is full, or the model cannot be loaded.
    """
    if request.upload is not None:
        request.upload.keep_all()
    try:
        with phases, ticket:
            while not isinstance(decision, Route):
                if isinstance(decision, WaitForSlot):
                    phases.resume("queue")
                    await ticket.wait_for_slot()
                else:
                    phases.resume("load")
                    await ticket.wait_for_load(partial(context.scheduler.wait_until_routable, decision))
                decision = choose_again()
    except errors.DeadlineExceeded as error:
        model = ticket.model
        if error.param != "load":
            raise errors.DeadlineExceeded(f"model '{model}' is busy: {error.message}", param=error.param) from error
        # The load goes on after this deadline, so the client learns when to try again.
        raise errors.ServiceUnavailable(
            f"model '{model}' is still being loaded: {error.message}{context.scheduler.earlier_loads(model)}",
            param="load",
            retry_after_s=context.scheduler.retry_after_s(model),
        ) from error
    return decision
