"""Refusals that name the room for the answer: every engine's words, and what becomes of the request's body."""

import json
import time
from email.utils import formatdate

import pytest

from gateway import errors
from gateway.dialects.anthropic import errors as anthropic_errors
from gateway.dialects.token_room import read_token_refusal, with_room
from gateway.dialects.upstream_errors import UpstreamErrorResponse, from_stream

WORDS = "input length and `max_tokens` exceed context limit: 13000 + 32000 > 32768"
BOTH_LIMITED = {
    "vllm": "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 32768 "
    "tokens and your request has 13000 input tokens (32000 > 32768 - 13000).",
    "vllm-new": "maximum context length is 32768 tokens. However, you requested 32000 output tokens "
    "and your prompt contains 13000 input tokens, for a total of 45000 tokens. Please reduce the length of the input.",
    "vllm-passed": "You passed 13000 input tokens and requested 32000 output tokens. However, the model's context "
    "length is only 32768 tokens, resulting in a maximum input length of 768 tokens.",
    "vllm-old": "maximum context length is 32768 tokens. However, you requested 45000 tokens (13000 in the "
    "messages, 32000 in the completion). Please reduce the length of the messages or completion.",
    "openai": "This model's maximum context length is 32768 tokens. However, you requested 45000 tokens (12000 in the "
    "messages, 1000 in the functions, and 32000 in the completion).",
    "llama-cpp-python": "This model's maximum context length is 32768 tokens, however you requested 45000 tokens "
    "(13000 in your prompt; 32000 for the completion). Please reduce your prompt; or completion length.",
    "openrouter": "This endpoint's maximum context length is 32768 tokens. However, you requested about 45000 tokens "
    "(12500 of text input, 500 of tool input, 32000 in the output). Please reduce the length of either one.",
    "tgi": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 32768. Given: 13000 `inputs` tokens "
    "and 32000 `max_new_tokens`",
    "deepinfra": "Requested generation length 32000 is not possible! The provided prompt is 13000 tokens long, so "
    "generating 32000 tokens requires a sequence length of 45000, but the maximum supported sequence length is just "
    "32768!",
    "tensorrt-llm": "The sum of prompt length (13000), query length (0), and max_tokens (32000) should not exceed "
    "max_seq_len (32768)",
    "mistral": "Prompt 13000 + max_tokens 32000 too large for model with 32768 maximum context length",
    "sum": "The input (13000 tokens) plus max_new_tokens (32000) exceeds the model's context length (32768).",
    "separators": "maximum context length is 32,768 tokens. However, you requested 45,000 tokens (13,000 in the "
    "messages, 32,000 in the completion).",
    "separators-sum": "Input length 13,000 + max_tokens 32_000 exceeds 32,768",
    "anthropic": WORDS + ", decrease input length or `max_tokens` and try again",
}
SGLANG = (
    "Requested token count exceeds the model's maximum context length of 32768 tokens. You requested a total of 45000 "
    "tokens: 13000 tokens from the input messages and 32000 tokens for the completion. Please reduce the number of "
    "tokens in the input messages or the completion to fit within the limit."
)
ANSWER_LIMITED = [
    "max_tokens is too large: 32000. This model supports at most 8192 completion tokens, whereas you provided 32000.",
    "max_tokens: 32000 > 8192, which is the maximum allowed number of output tokens for this model",
    "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
    "max_tokens=32000 cannot be greater than max_model_len=max_total_tokens=8192. Please request fewer output tokens.",
    "max_completion_tokens=32000 cannot be greater than max_model_len=8192.",
    "<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]",
    "max_tokens\u53c2\u6570\u975e\u6cd5\uff0c\u53d6\u503c\u8303\u56f4[1,8192]",  # Zhipu: illegal, range
    (
        "Unable to submit request because it has a maxOutputTokens value of 32000 but the supported range is from 1 "
        "(inclusive) to 8193 (exclusive). Update the value and try again."
    ),
    (
        "The maximum tokens you requested exceeds the model limit of 8192. Try again with a maximum tokens value that "
        "is lower than 8192."
    ),
    "Malformed input request: #/max_gen_len: 32000 is not less or equal to 8192, please reformat your input",
    "Malformed input request: #/textGenerationConfig/maxTokenCount: 32000 is not less or equal to 8,192",
    "too many tokens: max tokens must be less than or equal to 8192, the maximum output length - received 32000.",
    "max_tokens must be between 1 and 8192",
    "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the context",
]
PROMPT_TOO_LONG = [
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "request (45000 tokens) exceeds the available context size (32768 tokens), try increasing it",
    "The input (45000 tokens) is longer than the model's context length (32768 tokens).",
    "This model's maximum context length is 32768 tokens. However, your request has 45000 input tokens.",
    "maximum context length is 32768 tokens. However, you requested 45010 tokens (45000 in the messages, 10 in the x).",
    "is too large: 10. This model's maximum context length is 32768 tokens and your request has 32768 input tokens.",
    "This model's maximum context length is 32768 tokens. However, your messages resulted in 45000 tokens.",
    "prompt is too long: 45000 tokens > 32768 maximum",
    "Prompt contains 45000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "Too many input tokens. Max input tokens: 300000, request input token count: 346112",
    "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]",
    "",
]


@pytest.mark.parametrize("text", BOTH_LIMITED.values(), ids=BOTH_LIMITED)
def test_room_is_read_from_every_engines_words(text):
    """The error has the words by which Anthropic's clients lower `max_tokens`, never as a prompt that is too long."""
    refusal = read_token_refusal(text)
    assert (refusal.room, refusal.prompt, refusal.answer, refusal.context) == (19768, 13000, 32000, 32768)
    assert refusal.message.startswith(WORDS)
    body = json.dumps({"error": {"message": text, "code": "context_length_exceeded"}}).encode()
    response = UpstreamErrorResponse(400, [], body)
    assert not response.is_context_overflow
    error = json.loads(anthropic_errors.upstream_error_body(response, "r"))["error"]
    assert (error["type"], error["message"].startswith(WORDS)) == ("invalid_request_error", True)
    for error in (response.as_error(), from_stream({"message": text, "code": 400})):
        assert (type(error), error.param, error.message.startswith(WORDS)) == (errors.BadRequest, "max_tokens", True)


def test_sglang_wants_the_sum_below_the_limit():
    """So one token less."""
    assert read_token_refusal(SGLANG).room == 19767


@pytest.mark.parametrize("text", ANSWER_LIMITED)
def test_limit_of_the_answer_alone_is_the_room(text):
    """Hosted APIs limit the answer whatever the prompt."""
    assert with_room(b'{"max_tokens":32000}', read_token_refusal(text)) == b'{"max_tokens":8192}'


@pytest.mark.parametrize("text", PROMPT_TOO_LONG)
def test_prompt_that_is_too_long_is_no_matter_of_max_tokens(text):
    """A shorter answer would not help."""
    assert read_token_refusal(text) is None


def test_count_that_the_engine_did_not_finish_names_no_room():
    """VLLM stops counting at the limit: the words go to the client, and nothing is sent again."""
    text = BOTH_LIMITED["vllm-new"].replace("contains 13000", "contains at least 769")
    refusal = read_token_refusal(text)
    assert (refusal.room, with_room(b'{"max_tokens":32000}', refusal)) == (None, None)
    assert "exceed context limit: 769 + 32000 > 32768" in refusal.message


def test_sum_without_a_limit_is_about_max_tokens():
    """Then nothing is sent again, and the client gets the engine's own words, not that its prompt is too long."""
    refusal = read_token_refusal("input (13000 tokens) plus max_new_tokens (32000) exceeds the context")
    assert (refusal.message, with_room(b'{"max_tokens":32000}', refusal)) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "Please reduce the length of the messages or completion. Current length is 45000 while limit is 32768",
        (
            "too many tokens: total number of tokens (prompt and prediction) cannot exceed 32768, received 45000. Try "
            "using a shorter prompt or fewer max_tokens"
        ),
    ],
)
def test_total_alone_names_the_room_by_what_the_request_asked(text):
    """Cerebras and Cohere give no parts."""
    assert with_room(b'{"max_completion_tokens":32000}', read_token_refusal(text)) == b'{"max_completion_tokens":19768}'


@pytest.mark.parametrize(
    ("body", "shorter"),
    [
        (b'{"max_tokens":32000}', b'{"max_tokens":19768}'),
        (b'{ "max_completion_tokens" : 32000, "n":1e2}', b'{ "max_completion_tokens" : 19768, "n":1e2}'),
        (b'{"max_tokens":5,"max_completion_tokens":32000}', b'{"max_tokens":5,"max_completion_tokens":19768}'),
        (b'{"max_output_tokens":32000}', b'{"max_output_tokens":19768}'),
        (b'{"max_tokens":19768}', None),
        (b'{"max_tokens":32000,"max_tokens":32000}', None),
        (b'{"max_tokens":"many"}', None),
        (b'{"max_tokens":true}', None),
        (b'{"messages":[{"max_tokens":32000}]}', None),
        (b"[]", None),
        (b"", None),
    ],
)
def test_only_the_lengths_of_the_answer_change(body, shorter):
    """All other bytes stay."""
    assert with_room(body, read_token_refusal(BOTH_LIMITED["vllm"])) == shorter


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7),
        (b" 7 ", 7),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", None),
        (b"soon", None),
        (b"-1", None),
        (b"1" * 40, None),
        (b"Wed, 99 Foo 2026 99:99:99 GMT", None),
        (b"", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    """RFC 9110, section 10.2.3. Absurd values count for nothing."""
    assert UpstreamErrorResponse(503, [(b"retry-after", value)], b"").retry_after_s == seconds


@pytest.mark.parametrize(("from_now_s", "least", "most"), [(9000, 8000, 9000), (-90, 0, 0)])
def test_retry_after_as_a_date_counts_from_now(from_now_s, least, most):
    """In routing it counts as seconds do."""
    date = formatdate(time.time() + from_now_s, usegmt=True).encode()
    assert least <= UpstreamErrorResponse(503, [(b"retry-after", date)], b"").retry_after_s <= most
