"""`litellm` as a client: its `openai/` provider, and with LITELLM_PROVIDER its `anthropic/` one."""

import os

import litellm
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, WEATHER_SCHEMA, caught, play

PROVIDER = os.environ.get("LITELLM_PROVIDER", "openai")
BASE = {"openai": f"{URL}/v1", "anthropic": URL}[PROVIDER]
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER_SCHEMA}}


def complete(messages, model=MODEL, **more):
    return litellm.completion(
        model=f"{PROVIDER}/{model}", messages=messages, api_base=BASE, api_key="none", num_retries=0, **more
    )


def user(content):
    return [{"role": "user", "content": content}]


def chat():
    pieces = [chunk.choices[0].delta.content for chunk in complete(user(QUESTION), stream=True) if chunk.choices]
    return {"pieces": [piece for piece in pieces if piece]}


def tools():
    messages = user(CALL)
    first = complete(messages, tools=[TOOL]).choices[0].message
    [call] = first.tool_calls
    messages += [first, {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": REPORT}]
    second = complete(messages, tools=[TOOL]).choices[0].message
    return {"name": call.function.name, "arguments": call.function.arguments, "text": second.content}


def error():
    try:
        complete(user(QUESTION), model=UNKNOWN_MODEL)
    except litellm.NotFoundError as error:
        return caught(error)


async def abort():
    stream = await litellm.acompletion(
        model=f"{PROVIDER}/{MODEL}", messages=user(LONG), api_base=BASE, api_key="none", stream=True
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.aclose()


play(globals())
