"""`langchain-anthropic` as its users write it."""

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, caught, play


def model(name=MODEL):
    return ChatAnthropic(base_url=URL, api_key="none", model=name, max_tokens=5000, max_retries=0)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return REPORT


def chat():
    pieces = [chunk.text for chunk in model().stream(QUESTION)]
    return {"pieces": [piece for piece in pieces if piece]}


def tools():
    bound = model().bind_tools([weather])
    messages = [HumanMessage(CALL)]
    first = bound.invoke(messages)
    [call] = first.tool_calls
    messages += [first, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    second = bound.invoke(messages)
    return {"name": call["name"], "arguments": call["args"], "text": second.text}


def error():
    try:
        model(UNKNOWN_MODEL).invoke(QUESTION)
    except anthropic.NotFoundError as error:
        return caught(error)


async def abort():
    stream = model().astream(LONG)
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()


play(globals())
