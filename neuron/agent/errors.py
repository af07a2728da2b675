"""The errors of the neuron API: flat, `{"error": text, "code": code}`."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "DoesNotFit",
    "FromWebPage",
    "InUse",
    "InvalidRequest",
    "NeuronRequestError",
    "NotLoadable",
    "StartFailed",
    "Unauthorized",
    "UnknownModel",
]


class NeuronRequestError(Exception):
    """A request that the neuron refuses. `str()` is for the operator."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid"


class InvalidRequest(NeuronRequestError):
    """The request cannot succeed as it is."""


class UnknownModel(NeuronRequestError):
    """There is no such model, or it is not loaded."""

    status = 404
    code = "not_found"


class NotLoadable(NeuronRequestError):
    """A load of a model that this neuron does not have. Every failure of a load is a 400."""

    code = "not_found"


class InUse(NeuronRequestError):
    """The model has requests in flight, or is being loaded."""

    status = 409
    code = "in_use"


class DoesNotFit(NeuronRequestError):
    """There is not enough device memory. The text names who holds it."""

    code = "does_not_fit"


class StartFailed(NeuronRequestError):
    """The engine did not start, or crashed too often."""

    code = "start_failed"


class FromWebPage(NeuronRequestError):
    """A browser sent the request for a web page."""

    status = 403
    code = "forbidden"


class Unauthorized(NeuronRequestError):
    """The request has no token, or a wrong one."""

    status = 401
    code = "unauthorized"
