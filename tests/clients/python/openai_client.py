"""The `openai` SDK as its users write it, in the release that the frameworks in this environment need."""

import openai
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, WEATHER_SCHEMA, caught, play

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}


def chat():
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True, max_completion_tokens=100
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    return {"pieces": [piece for piece in pieces if piece]}


def tools():
    messages = [{"role": "user", "content": CALL}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    [call] = first.choices[0].message.tool_calls
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": REPORT}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    return {"name": call.function.name, "arguments": call.function.arguments, "text": second.choices[0].message.content}


def error():
    try:
        client.chat.completions.create(model=UNKNOWN_MODEL, messages=[{"role": "user", "content": QUESTION}])
    except openai.NotFoundError as error:
        return caught(error)


def abort():
    stream = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": LONG}], stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()


play(globals())
