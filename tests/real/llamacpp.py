"""llama.cpp's own server as a process, for tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).parent / "llamacpp_server.py"
KEY = "only-the-gateway-knows-it"


@contextmanager
def running(model: Path, what: str) -> Iterator[str]:
    """Serve the model for "chat" or "embeddings"; yields the base URL."""
    command = [sys.executable, str(SERVER), str(model), KEY, what]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            answer_text = (line.split() for line in process.stdout or ())
            yield next(words[1] for words in answer_text if words[:1] == ["listening"])
        finally:
            process.kill()
