"""`langchain-openai` as its users write it, chat completions and, with LANGCHAIN_RESPONSES, responses."""

import os

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from stage import CALL, LONG, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, URL, caught, play


def model(name=MODEL):
    return ChatOpenAI(
        base_url=f"{URL}/v1",
        api_key="none",
        model=name,
        max_retries=0,
        use_responses_api="LANGCHAIN_RESPONSES" in os.environ,
    )


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
    except openai.NotFoundError as error:
        return caught(error)


async def abort():
    stream = model().astream(LONG)
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()


def embed():
    """`check_embedding_ctx_length` would download OpenAI's tokenizer and send token ids instead of text."""
    embeddings = OpenAIEmbeddings(
        base_url=f"{URL}/v1", api_key="none", model="Qwen/Qwen3-Embedding-0.6B", check_embedding_ctx_length=False
    )
    return {"lengths": [len(vector) for vector in embeddings.embed_documents(["one", "two"])]}


play(globals())
