"""`instructor` as its users write it: an answer as an object, by a forced tool call, whole and in pieces.

In pieces with the async client: the sync client of 1.17 reads a stream to its end before it returns anything.
"""

import instructor
import openai
from instructor.exceptions import InstructorRetryException
from pydantic import BaseModel
from stage import LONG, MODEL, QUESTION, UNKNOWN_MODEL, URL, caught, play

SERVER = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
client = instructor.from_openai(openai.OpenAI(**SERVER))


class Capital(BaseModel):
    """A capital and its country."""

    city: str
    country: str


def ask(content=QUESTION, model=MODEL):
    return {"model": model, "messages": [{"role": "user", "content": content}], "response_model": Capital}


def partials(content):
    return instructor.from_openai(openai.AsyncOpenAI(**SERVER)).chat.completions.create_partial(**ask(content))


async def chat():
    """Partial objects: each has all fields known so far."""
    cities = [capital.city async for capital in partials(QUESTION)]
    return {"pieces": [city for city in dict.fromkeys(cities) if city]}


def tools():
    capital = client.chat.completions.create(**ask())
    return {"name": "Capital", "arguments": capital.model_dump(), "text": None}


def error():
    try:
        client.chat.completions.create(**ask(model=UNKNOWN_MODEL), max_retries=0)
    except InstructorRetryException as error:
        return caught(error, error.__cause__.status_code)


async def abort():
    stream = partials(LONG)
    await anext(stream)
    await stream.aclose()


play(globals())
