"""`openai-agents` as its users write it: Responses, or chat completions with OPENAI_AGENTS=chat."""

import json
import os

import openai
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, caught, play

set_tracing_disabled(True)  # to OpenAI


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return REPORT


def agent(name=MODEL, **more):
    kind = OpenAIChatCompletionsModel if os.environ.get("OPENAI_AGENTS") == "chat" else OpenAIResponsesModel
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    return Agent(name="scene", model=kind(model=name, openai_client=client), **more)


def text_deltas(result):
    return (
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    )


async def chat():
    result = Runner.run_streamed(agent(), QUESTION)
    return {"pieces": [piece async for piece in text_deltas(result)]}


async def tools():
    result = await Runner.run(agent(tools=[weather]), CALL)
    [call] = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return {"name": call.name, "arguments": json.loads(call.arguments), "text": result.final_output}


async def error():
    try:
        await Runner.run(agent(UNKNOWN_MODEL), QUESTION)
    except openai.NotFoundError as error:
        return caught(error)


async def abort():
    result = Runner.run_streamed(agent(), LONG)
    async for _ in text_deltas(result):
        break
    result.cancel()
    async for _ in result.stream_events():
        pass


play(globals())
