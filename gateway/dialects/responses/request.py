"""A Responses request as a chat completions request: its parameters, and the fields that the answer repeats.

`request_types` reads it, `conversation` translates the messages and `tools` the tools. Requests that need something
stored on a server are rejected here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.chat_request import encode_messages, estimate_tokens
from gateway.dialects.fields import invalid
from gateway.dialects.json_splice import ModelField, locate
from gateway.dialects.loose_json import JsonObject, is_object
from gateway.dialects.responses import conversation, request_types
from gateway.dialects.responses.client_run_tools import FUNCTIONS
from gateway.dialects.responses.request_types import ResponsesRequest, ResponsesTextFormat, ResponsesToolChoice
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.tools import OfferedTools, offered_tools
from gateway.dialects.translation.bounds import ITEMS_LIMIT, TOOLS_LIMIT, check_count, check_size
from gateway.dialects.translation.engine_extras import ENGINE_EXTRAS, extras_of, with_extras
from gateway.dialects.translation.ignored import Ignored, ignored_fields

__all__ = ["ResponsesAsChat", "translate"]


class ResponsesAsChat:
    """A valid Responses request, ready to be written as a chat completions request.

    Attributes:
        ignored: The value of `x-cortex-ignored` for a plain backend; empty if nothing was left out.
    """

    __slots__ = (
        "_encoded",
        "_extras",
        "_ignored",
        "_input_tokens",
        "_request",
        "_secret_key",
        "_stream",
        "_tools",
        "ignored",
    )

    def __init__(
        self, request: ResponsesRequest, fields: Mapping[str, msgspec.Raw], secret_key: bytes, *, stream: bool
    ) -> None:
        self._request = request
        self._secret_key = secret_key
        self._stream = stream
        self._extras = extras_of(fields, _OWN_FIELDS)
        self._tools = offered_tools(request)
        self._ignored = ignored = Ignored()
        ignored.add(*ignored_fields(fields, _UNDERSTOOD, _DEFAULTS), *_ignored_in_fields(request), *self._tools.ignored)
        messages = conversation.messages(request, PLAIN, ignored, secret_key)
        self.ignored = self.ignored_by(PLAIN)
        if not messages:
            raise invalid("input", "at least one item that a model can read is required")
        encoded = encode_messages(messages)
        self._encoded = {PLAIN: (encoded, self._parameters(PLAIN))}
        self._input_tokens = estimate_tokens(messages, encoded, self._tools.functions)

    def encode(self, model: str, backend: Backend = PLAIN) -> bytes:
        """The outgoing body for a backend of this kind that knows the model as `model`.

        A retry may call it again for another backend; the messages for each kind of backend are kept.

        Raises:
            BadRequest: This kind of backend cannot be sent the request; names the field.
        """
        if backend not in self._encoded:
            messages = encode_messages(conversation.messages(self._request, backend, Ignored(), self._secret_key))
            self._encoded[backend] = messages, self._parameters(backend)
        messages, parameters = self._encoded[backend]
        return msgspec.json.encode({"model": model, "messages": msgspec.Raw(messages), **parameters})

    def ignored_by(self, backend: Backend) -> bytes:
        """The value of `x-cortex-ignored` for a backend of this kind: one has no switch for thinking."""
        reasoning = self._request.reasoning
        has_no_switch = reasoning is not None and reasoning.effort is not None and backend.thinking_switch == "none"
        return self._ignored.header_value(("reasoning.effort",) if has_no_switch else ())

    def context(self, answer_id: str, model: str) -> ResponsesContext:
        """What the answer's translation needs."""
        repeated = _repeated_fields(self._request, self._tools)
        return ResponsesContext(
            answer_id, model, self._input_tokens, repeated, self._tools.client_tools, self._secret_key
        )

    def _parameters(self, backend: Backend) -> JsonObject:
        """Everything but `model` and `messages`, in a fixed order."""
        request = self._request
        parameters: JsonObject = {
            "max_tokens": request.max_output_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "user": request.user,
            "response_format": _response_format(request.text.format if request.text else None),
        }
        if self._tools.functions:
            parameters |= {
                "tools": self._tools.functions,
                "tool_choice": self._tools.choice,
                "parallel_tool_calls": request.parallel_tool_calls,
            }
        parameters |= _thinking_parameters(request.reasoning.effort if request.reasoning else None, backend)
        if self._stream:
            parameters |= {"stream": True, "stream_options": {"include_usage": True}}
        return with_extras({name: value for name, value in parameters.items() if value is not None}, self._extras)


_OWN_FIELDS = frozenset({"model", "stream", *ResponsesRequest.__struct_fields__})
_UNDERSTOOD = _OWN_FIELDS | ENGINE_EXTRAS
_DEFAULTS = {
    "store": frozenset({b"false"}),
    "truncation": frozenset({b'"disabled"'}),
    "service_tier": frozenset({b'"auto"', b'"default"'}),
    "top_logprobs": frozenset({b"0"}),
    "n": frozenset({b"1"}),
}
ENCRYPTED_REASONING = "reasoning.encrypted_content"  # of `include`: answers always have it


def _ignored_in_fields(request: ResponsesRequest) -> Iterator[str]:
    """Parts of fields that have no effect, though the field has one."""
    include = request.include if isinstance(request.include, list) else []
    yield from (f"include.{name}" for name in include if isinstance(name, str) and name != ENCRYPTED_REASONING)
    if request.max_tool_calls is not None:
        yield "max_tool_calls"
    if request.reasoning is not None and request.reasoning.summary is not None:
        yield "reasoning.summary"
    if request.text is not None and request.text.verbosity is not None:
        yield "text.verbosity"


def translate(body: bytes, model: ModelField | None = None, secret_key: bytes = b"") -> ResponsesAsChat:
    """Read a body of `/v1/responses`. `model` is its model field if already located.

    Raises:
        MalformedJson, MissingModelField: As `json_splice.locate`.
        BadRequest: A field is wrong or cannot be translated; the message and `param` name its path.
    """
    model = locate(body) if model is None else model
    check_size(body)
    request, fields = request_types.reader.read(body)
    check_count(request.input, "input", ITEMS_LIMIT)
    check_count(request.tools, "tools", TOOLS_LIMIT)
    _reject_what_needs_a_store(request)
    return ResponsesAsChat(request, fields, secret_key, stream=model.stream)


def _reject_what_needs_a_store(request: ResponsesRequest) -> None:
    """An answer without the stored conversation or prompt would look like an answer to it."""
    if request.previous_response_id:
        raise invalid("previous_response_id", conversation.NO_STORE)
    if request.conversation:
        raise invalid("conversation", conversation.NO_STORE)
    if request.prompt:
        raise invalid("prompt", "this gateway stores no prompt templates: send the whole input")
    if request.background is True:
        raise invalid("background", "this gateway stores no responses to fetch later: leave it out, or use `stream`")


# Parameters...


def _response_format(text_format: ResponsesTextFormat | None) -> JsonObject | None:
    match text_format:
        case None | ResponsesTextFormat(type="text"):
            return None
        case ResponsesTextFormat(type="json_object"):
            return {"type": "json_object"}
        case ResponsesTextFormat(type="json_schema"):
            return {"type": "json_schema", "json_schema": _json_schema(text_format)}
    raise invalid("text.format.type", f"must be `text`, `json_object` or `json_schema`, not `{text_format.type}`")


def _json_schema(text_format: ResponsesTextFormat) -> JsonObject:
    if not is_object(text_format.schema):
        raise invalid("text.format.schema", "must be an object")
    fields = {
        "name": text_format.name or "answer",
        "description": text_format.description,
        "schema": text_format.schema,
        "strict": text_format.strict,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _thinking_parameters(effort: str | None, backend: Backend) -> JsonObject:
    """The backend's switch for thinking. Levels that engines do not have become the nearest of their three."""
    if effort is None or backend.thinking_switch == "none":
        return {}
    if backend.thinking_switch == "chat_template_kwargs":
        return {"chat_template_kwargs": {"enable_thinking": effort not in {"none", "minimal"}}}
    return {"reasoning_effort": _LEVELS.get(effort, "high")}


_LEVELS = {"none": "none", "minimal": "low", "low": "low", "medium": "medium"}


# Fields that the answer repeats...


def _repeated_fields(request: ResponsesRequest, tools: OfferedTools) -> JsonObject:
    """The request's parameters as the API repeats them. What only OpenAI's servers can do is reported as not done."""
    text, reasoning = request.text, request.reasoning
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": request.temperature,
        "text": {
            "format": {"type": "text"} if text is None or text.format is None else _repeated_format(text.format),
            "verbosity": text.verbosity if text else None,
        },
        "tool_choice": _repeated_choice(request.tool_choice),
        "tools": tools.repeated,
        "top_logprobs": 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _repeated_format(text_format: ResponsesTextFormat) -> JsonObject:
    if text_format.type != "json_schema":
        return {"type": text_format.type}
    return {"type": "json_schema", "description": None, "strict": None, **_json_schema(text_format)}


def _repeated_choice(choice: str | ResponsesToolChoice | None) -> str | JsonObject:
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    if choice.type == "allowed_tools":
        allowed = [
            {"type": tool.type} if tool.type in FUNCTIONS else {"type": tool.type, "name": tool.name}
            for tool in request_types.tools_in(choice.tools, "tool_choice.tools")
        ]
        return {"type": choice.type, "mode": choice.mode, "tools": allowed}
    if choice.type in FUNCTIONS:
        return {"type": choice.type}
    return {"type": choice.type, "name": choice.name or (choice.function.name if choice.function else None)}
