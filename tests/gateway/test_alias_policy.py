"""What an alias says beyond its target, seen from a request's two ends."""

from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import read_request, with_length

from catalogue.load import parse
from gateway.fleet import ModelReport, NodeReport

OTHER = "Qwen/Qwen3-8B"
JSON = b'{"object":"chat.completion","choices":[]}'


async def answering_all(stream):
    """A neuron that answers whatever it is asked."""
    while True:
        await read_request(stream)
        await stream.send_all(with_length(JSON))


def a_gateway(nursery, aliases):
    """Before one neuron with two models, under these aliases."""
    gateway = InMemoryGateway(nursery, {"beast": answering_all})
    models = (ModelReport(name, "loaded", url="http://beast:13131") for name in (SMALL, OTHER))
    gateway.fleet.answered("beast", NodeReport(tuple(models), devices=()))
    text = f"[aliases]\n{aliases}"
    gateway.inference.catalogue.current = parse(text.encode(), path="models.toml", generation=1, loaded_at=0.0)
    return gateway


def saying(*contents):
    return {"model": "x", "messages": [{"role": "user", "content": content} for content in contents]}


async def answered_by(gateway, body):
    answer = await gateway.client().ask(body)
    assert answer.status == 200
    assert answer.headers["x-cortex-alias"] == "x"
    return answer.headers["x-cortex-model"]


async def test_conversation_keeps_its_target_and_others_go_elsewhere(nursery, autojump_clock):
    """The header names who answered; the weights are seen over many conversations."""
    gateway = a_gateway(nursery, f'x = {{ targets = ["{SMALL}", "{OTHER}"], sticky = "conversation" }}')
    first = [await answered_by(gateway, saying(f"hello {number}")) for number in range(40)]
    second = [await answered_by(gateway, saying(f"hello {number}", "go on")) for number in range(40)]

    assert first == second
    assert 5 < first.count(SMALL.lower()) < 35
    await gateway.idle()


async def test_requests_of_an_alias_without_stickiness_are_drawn_one_by_one(nursery, autojump_clock):
    """Also those that look the same."""
    gateway = a_gateway(nursery, f'x = {{ targets = ["{SMALL}", "{OTHER}"] }}')
    models = {await answered_by(gateway, saying("hello")) for _ in range(60)}

    assert models == {SMALL.lower(), OTHER.lower()}
