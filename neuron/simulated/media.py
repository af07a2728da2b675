"""Images, audio, moderation and tokenizing at a simulated neuron, in OpenAI's and vLLM's shapes: small but valid.

As everywhere in the simulator the answer follows from the model and what it is given, so the same request is answered
the same, and another model otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from neuron.simulated import shapes, text
from neuron.simulated.http import Framing
from neuron.simulated.inference import Due, Job, read, send_whole
from neuron.simulated.state import SimRefusal

__all__ = ["ENDPOINTS", "FORMS", "png", "wav"]

_IMAGE_TOKENS = 64  # of one generated picture
_SAMPLES_PER_S = 8000
_SAMPLES_PER_TOKEN = 800  # a tenth of a second of sound for each token of text
_SECONDS_PER_BYTE = 1 / 32_000  # 16-bit mono at 16 kHz, which is what speech is sent as
_FLAGGED = ("kill", "bomb")
_ENCODE = msgspec.json.Encoder().encode


# ---- images


class ImagesRequest(msgspec.Struct):
    """`POST /v1/images/generations`."""

    prompt: str
    n: int | None = None


async def _generate_images(job: Job) -> None:
    request = read(ImagesRequest, job.exchange.request.body)
    await _paint(job, request.prompt, request.n or 1)


async def _edit_images(job: Job) -> None:
    form = job.form
    if not form.files:
        raise SimRefusal(400, "invalid request: no image")
    seed = form.fields.get("prompt", "") + "".join(form.file_sha256)
    count = form.fields.get("n", "1")
    await _paint(job, seed, int(count) if count.isdigit() else 1)


async def _paint(job: Job, prompt: str, count: int) -> None:
    prompt_tokens, painted = len(text.tokens(prompt)), _IMAGE_TOKENS * count
    await job.state.sleep_until(partial(Due(job, prompt_tokens).token, painted))
    pictures = [
        {"b64_json": base64.b64encode(png(job.model.id, prompt, str(index))).decode()} for index in range(count)
    ]
    usage = {
        "input_tokens": prompt_tokens,
        "output_tokens": painted,
        "total_tokens": prompt_tokens + painted,
        "input_tokens_details": {"text_tokens": prompt_tokens, "image_tokens": 0},
    }
    await send_whole(job, _ENCODE({"created": shapes.CREATED, "data": pictures, "usage": usage}))


def png(*parts: str) -> bytes:
    """An image of 8 x 8 pixels in one colour, the same for the same parts (PNG 1.2, RFC 2083)."""
    colour = hashlib.sha256("\0".join(parts).encode()).digest()[:3]
    rows = (b"\0" + colour * 8) * 8
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


# ---- audio


class SpeechRequest(msgspec.Struct):
    """`POST /v1/audio/speech`."""

    input: str
    voice: str | None = None


async def _speak(job: Job) -> None:
    """Send a WAV: its header, then a piece for each token when it is due."""
    request = read(SpeechRequest, job.exchange.request.body)
    tokens = text.tokens(request.input)
    due = Due(job, len(tokens))
    await job.state.sleep_until(due.first)
    job.phase = "decode"
    header, *sounds = wav(job.model.id, request.voice or "", tokens)
    await job.exchange.begin(200, "audio/wav", Framing.CHUNKED)
    await job.exchange.write(header)
    for count, sound in enumerate(sounds, start=1):
        await job.state.sleep_until(partial(due.token, count))
        await job.exchange.write(sound)
    job.phase = "done"
    await job.exchange.end()


def wav(model_id: str, voice: str, tokens: list[str]) -> list[bytes]:
    """A header for 16-bit mono, and one piece of audio for each token."""
    size = len(tokens) * _SAMPLES_PER_TOKEN * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _SAMPLES_PER_S, _SAMPLES_PER_S * 2, 2, 16)
    header = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
    return [header, *(_tone(model_id, voice, token) for token in tokens)]


def _tone(*parts: str) -> bytes:
    half_wave = 4 + hashlib.sha256("\0".join(parts).encode()).digest()[0] % 12
    wave = struct.pack("<h", 3000) * half_wave + struct.pack("<h", -3000) * half_wave
    return (wave * _SAMPLES_PER_TOKEN)[: _SAMPLES_PER_TOKEN * 2]


async def _transcribe(job: Job) -> None:
    await _answer_audio(job, "transcribe")


async def _translate(job: Job) -> None:
    await _answer_audio(job, "translate")


async def _answer_audio(job: Job, task: str) -> None:
    """The transcript of a file: words derived from its bytes."""
    form = job.form
    if len(form.files) != 1:
        raise SimRefusal(400, "invalid request: exactly one file is required")
    transcript = text.answer(job.model.id, task + form.file_sha256[0], "")
    tokens, input_tokens = text.tokens(transcript), len(form.files[0]) // 1000
    due = Due(job, input_tokens)
    usage = {
        "type": "tokens",
        "input_tokens": input_tokens,
        "output_tokens": len(tokens),
        "total_tokens": input_tokens + len(tokens),
    }
    if job.head.stream and task == "transcribe":
        await _stream_transcript(job, due, tokens, usage)
        return
    await job.state.sleep_until(partial(due.token, len(tokens)))
    if form.fields.get("response_format") == "text":
        await send_whole(job, transcript.encode(), "text/plain; charset=utf-8")
        return
    answer: dict[str, Any] = {"text": transcript, "usage": usage}
    if form.fields.get("response_format") == "verbose_json":
        answer |= {"task": task, "language": "english", "duration": len(form.files[0]) * _SECONDS_PER_BYTE}
    await send_whole(job, _ENCODE(answer))


async def _stream_transcript(job: Job, due: Due, tokens: list[str], usage: dict[str, Any]) -> None:
    await job.exchange.begin(200, "text/event-stream", Framing.CHUNKED)
    for count, token in enumerate(tokens, start=1):
        await job.state.sleep_until(partial(due.token, count))
        job.phase = "decode"
        await job.exchange.write(shapes.sse({"type": "transcript.text.delta", "delta": token}))
    done = {"type": "transcript.text.done", "text": "".join(tokens), "usage": usage}
    job.phase = "done"
    await job.exchange.write(shapes.sse(done))
    await job.exchange.end()


# ---- moderation


class ModerationsRequest(msgspec.Struct):
    """`POST /v1/moderations`."""

    input: str | list[str | dict[str, Any]]


async def _moderate(job: Job) -> None:
    """Flag texts that contain the word violence."""
    request = read(ModerationsRequest, job.exchange.request.body)
    inputs = [request.input] if isinstance(request.input, str) else request.input
    texts = [one if isinstance(one, str) else str(one.get("text", "")) for one in inputs]
    prompt = "".join(texts)
    await job.state.sleep_until(Due(job, len(text.tokens(prompt))).first)
    answer = {
        "id": text.identifier("modr", job.model.id, prompt),
        "model": job.voice.model,
        "results": [_verdict(one) for one in texts],
    }
    await send_whole(job, _ENCODE(answer))


def _verdict(one: str) -> dict[str, Any]:
    violent = any(word in one.lower() for word in _FLAGGED)
    found = {"hate": False, "harassment": False, "self-harm": False, "sexual": False, "violence": violent}
    return {
        "flagged": violent,
        "categories": found,
        "category_scores": {name: 0.98 if is_found else 0.01 for name, is_found in found.items()},
        "category_applied_input_types": {name: ["text"] for name in found},
    }


# ---- tokens


class TokenizeRequest(msgspec.Struct):
    """`POST /tokenize`, as vLLM has it: a prompt, or messages to which the chat template is applied."""

    prompt: str | None = None
    messages: list[shapes.SimMessage] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct):
    """`POST /detokenize`."""

    tokens: list[int]


async def _tokenize(job: Job) -> None:
    request = read(TokenizeRequest, job.exchange.request.body)
    if request.messages is not None:
        tokens = list(shapes.chat_prompt(shapes.ChatRequest(messages=request.messages)))
    else:
        tokens = text.tokens(request.prompt or "")
    ids = [job.state.vocabulary.id_of(token) for token in tokens]
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": job.model.context, "tokens": ids}
    await send_whole(job, _ENCODE(answer | ({"token_strs": tokens} if request.return_token_strs else {})))


async def _detokenize(job: Job) -> None:
    request = read(DetokenizeRequest, job.exchange.request.body)
    try:
        prompt = "".join(job.state.vocabulary.token_of(number) for number in request.tokens)
    except KeyError as unknown:
        raise SimRefusal(400, f"no such token: {unknown}") from None
    await send_whole(job, _ENCODE({"prompt": prompt}))


ENDPOINTS: Mapping[str, Callable[[Job], Awaitable[None]]] = MappingProxyType(
    {
        "/v1/images/generations": _generate_images,
        "/v1/images/edits": _edit_images,
        "/v1/audio/speech": _speak,
        "/v1/audio/transcriptions": _transcribe,
        "/v1/audio/translations": _translate,
        "/v1/moderations": _moderate,
        "/tokenize": _tokenize,
        "/detokenize": _detokenize,
        "/v1/tokenize": _tokenize,
        "/v1/detokenize": _detokenize,
    }
)

FORMS = frozenset({"/v1/images/edits", "/v1/audio/transcriptions", "/v1/audio/translations"})
"""Paths whose request is a form, not JSON."""
