"""`pydantic-ai` as its users write it: agents on its OpenAI model, or with PYDANTIC_AI its other ones."""

import os

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, caught, play


def model(name=MODEL):
    match os.environ.get("PYDANTIC_AI", "openai"):
        case "anthropic":
            return AnthropicModel(name, provider=AnthropicProvider(base_url=URL, api_key="none"))
        case "responses":
            return OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))
        case _:
            return OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))


async def chat():
    async with Agent(model()).run_stream(QUESTION) as result:
        return {"pieces": [piece async for piece in result.stream_text(delta=True, debounce_by=None)]}


async def tools():
    agent = Agent(model())

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        return REPORT

    result = await agent.run(CALL)
    [call] = [
        part
        for message in result.all_messages()
        if isinstance(message, ModelResponse)
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    return {"name": call.tool_name, "arguments": call.args, "text": result.output}


async def error():
    try:
        await Agent(model(UNKNOWN_MODEL)).run(QUESTION)
    except ModelHTTPError as error:
        return caught(error)


async def abort():
    async with Agent(model()).run_stream(LONG) as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            break


play(globals())
