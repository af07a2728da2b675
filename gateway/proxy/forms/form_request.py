"""Multipart requests: read as far as the `model` field, dispatched, and the rest read while the request runs."""

from __future__ import annotations

import trio

from gateway.asgi import Headers, Receive, Scope
from gateway.dialects.json_splice import ModelField
from gateway.errors import GatewayError, UnsupportedMediaType
from gateway.proxy import total_deadline
from gateway.proxy.body.compressed import CompressedBody, coding_of
from gateway.proxy.forms.form_parser import FormParser, boundary_of
from gateway.proxy.forms.spool import Spool
from gateway.proxy.forms.upload import Upload
from gateway.proxy.request import (
    InferenceRequest,
    check_head,
    content_type_of,
    media_type,
    path_and_query,
)
from gateway.proxy.response.client_response import ClientGone, ClientResponse
from gateway.proxy.response.client_watch import keep_alive, watch_client
from gateway.proxy.response.keepalive import KeepAlive
from gateway.telemetry.request_record import RequestRecord

__all__ = ["open_upload", "read_form_request", "watch_uploading_client"]


async def read_form_request(
    scope: Scope,
    receive: Receive,
    spool: Spool,
    record: RequestRecord,
    *,
    body_limit_bytes: int,
    stall_timeout_s: float,
) -> InferenceRequest:
    """Read the form as far as routing needs it. That may take long: only the client's total deadline limits it.

    Raises:
        GatewayError: As `open_upload` and `Upload.read_until_model`; DeadlineExceeded for the client's deadline.
        ClientGone: The client left.
    """
    upload = open_upload(scope, receive, spool, body_limit_bytes=body_limit_bytes, stall_timeout_s=stall_timeout_s)
    try:
        deadline = total_deadline.of_client(scope["headers"])
        with trio.CancelScope() as arrival:
            if deadline is not None:
                arrival.deadline = trio.current_time() + deadline.allowed_s
            name, start, end = await upload.read_until_model()
        if deadline is not None and arrival.cancelled_caught:
            raise deadline.exceeded("header", {})
    finally:
        record.bytes_in = upload.received_bytes
    record.read_at = trio.current_time()
    model = ModelField(name, start, end, stream=False)  # a form may ask for a stream in its last field
    return InferenceRequest(
        path_and_query(scope), scope["headers"], b"", model, record.request_id, total_deadline=deadline, upload=upload
    )


def open_upload(
    scope: Scope, receive: Receive, spool: Spool, *, body_limit_bytes: int, stall_timeout_s: float
) -> Upload:
    """Check the request's head and return its form, of which nothing is read yet.

    Raises:
        MethodNotAllowed, UnsupportedEncoding, UnsupportedMediaType, BodyTooLarge, MalformedMultipart: By their names.
    """
    headers: Headers = scope["headers"]
    length = check_head(scope, body_limit_bytes)
    content_type = content_type_of(headers)
    if media_type(content_type) != b"multipart/form-data":
        raise UnsupportedMediaType(f"{scope['path']} takes multipart/form-data")
    parser = FormParser(boundary_of(content_type))
    coding = coding_of(headers)
    if coding is not None:
        receive, length = CompressedBody(receive, coding, body_limit_bytes).receive, None
    return Upload(receive, parser, spool, length=length, limit_bytes=body_limit_bytes, stall_timeout_s=stall_timeout_s)


async def watch_uploading_client(
    upload: Upload,
    receive: Receive,
    client: ClientResponse,
    record: RequestRecord,
    *,
    keepalive: KeepAlive | None,
    nursery: trio.Nursery,
) -> None:
    """Read the rest of the upload, then watch the client. An error in the rest ends the request."""
    try:
        await upload.run()
    except GatewayError as error:
        record.cancel(error)
        return
    except ClientGone:
        if not client.ending:  # as in `watch_client`: a neuron may answer before the upload ends
            record.outcome = "client_disconnected"
            nursery.cancel_scope.cancel()
        return
    if upload.stream and keepalive is not None and not client.started:
        record.stream = True
        # Not before the upload has ended: few clients read a response while they send.
        keepalive.begin()
        nursery.start_soon(keep_alive, keepalive, record, nursery.cancel_scope)
    await watch_client(receive, client, record, nursery.cancel_scope)
