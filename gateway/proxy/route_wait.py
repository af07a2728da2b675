"""Waiting for a replica, when every replica is full or the model is not loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway import errors
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import Decision, WaitForSlot
from gateway.fleet.routing.queue import QueueTicket
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.context import ProxyContext
from gateway.proxy.request import InferenceRequest
from gateway.proxy.response.keepalive import KeepAlive

__all__ = ["wait_for_route"]


async def wait_for_route(
    context: ProxyContext,
    request: InferenceRequest,
    phases: PhaseDeadlines,
    ticket: QueueTicket,
    *,
    keepalive: KeepAlive | None,
    decision: Decision,
    choose_again: Callable[[], Decision],
) -> Route:
    """Wait in the model's queue until a replica has room, loading the model first if the decision says so.

    Args:
        context: The shared collaborators.
        request: An upload is read to its end meanwhile.
        phases: The `queue` and `load` deadlines of the request.
        ticket: The request's place in the queue.
        keepalive: Its comments say how far the load is meanwhile; None for a request without them.
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
                    if keepalive is not None:
                        keepalive.comment = partial(_loading_text, context, ticket.model)
                    await ticket.wait_for_load(partial(context.scheduler.wait_until_routable, decision))
                decision = choose_again()
    except errors.DeadlineExceeded as error:
        model = ticket.model
        if error.param != "load":
            raise errors.DeadlineExceeded(f"model '{model}' is busy: {error.message}", param=error.param) from error
        # The load goes on after this deadline, so the client learns when to try again.
        raise errors.ServiceUnavailable(
            f"model '{model}' is still being loaded ({_loading_text(context, model)}): {error.message}"
            f"{context.scheduler.earlier_loads(model)}",
            param="load",
            retry_after_s=context.scheduler.retry_after_s(model),
        ) from error
    finally:
        if keepalive is not None:
            keepalive.comment = None
    return decision


def _loading_text(context: ProxyContext, model: str) -> str:
    """How far the load of the model is, for people. Without names: they may contain anything."""
    progress = context.scheduler.progress(model)
    if progress is None:
        return "waiting for memory"
    facts = ["" if progress.fraction is None else f"{progress.fraction:.0%}"]
    facts.append("" if progress.elapsed_s is None else f"{progress.elapsed_s:.0f} s so far")
    facts.append(f"about {progress.left_s:.0f} s left" if progress.left_s else "")
    return " ".join(["waking" if progress.wakes else "loading", ", ".join(filter(None, facts))]).rstrip()
