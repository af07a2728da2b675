"""A capture and its texts for a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gateway.telemetry.printable import one_line, printable

__all__ = ["capture_text"]


def capture_text(body: dict[str, Any]) -> str:
    """The answer of `/admin/capture`, oldest request first."""
    capture = body["capture"]
    if capture is None:
        return "no capture is running, and no text is kept"
    until = datetime.fromtimestamp(capture["until"]).astimezone().strftime("%H:%M:%S %Z")
    how = "redacted texts" if capture["redacted"] else "texts"
    lines = [f"capturing the {how} of {one_line(capture['alias'])} until {until}; {capture['kept']} requests are kept"]
    for request in body.get("requests", ()):
        at = datetime.fromtimestamp(request["at"]).astimezone().strftime("%H:%M:%S")
        lines.append(f"\n{at}  {request['request_id']}  {request['model']} on {request['node']}, {request['status']}")
        lines += [f"{one_line(message['role'])}: {printable(message['text'])}" for message in request["messages"]]
        lines.append(f"answer: {printable(request['answer'])}{' …' if request['is_cut'] else ''}")
    return "\n".join(lines)
