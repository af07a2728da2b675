"""The `anthropic` SDK as its users write it, in the release that the frameworks in this environment need."""

import anthropic
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, WEATHER_SCHEMA, caught, play

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
TOOL = {"name": "weather", "input_schema": WEATHER_SCHEMA}


def message(content):
    return {"model": MODEL, "max_tokens": 5000, "messages": [{"role": "user", "content": content}]}


def chat():
    with client.messages.stream(**message(QUESTION)) as stream:
        return {"pieces": list(stream.text_stream)}


def tools():
    arguments = message(CALL)
    first = client.messages.create(**arguments, tools=[TOOL])
    [call] = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": REPORT}
    arguments["messages"] += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(**arguments, tools=[TOOL])
    return {"name": call.name, "arguments": call.input, "text": second.content[0].text}


def error():
    try:
        client.messages.create(**message(QUESTION) | {"model": UNKNOWN_MODEL})
    except anthropic.NotFoundError as error:
        return caught(error)


def abort():
    with client.messages.stream(**message(LONG)) as stream:
        next(iter(stream.text_stream))


play(globals())
