"""schemathesis reads the OpenAPI documents and asks for everything in them, in every way it can think of.

What it looks for: a 5xx, a status, a content type or a header that the document does not have, a body that is not as
described, a method that should not be served.
"""

import json
import subprocess

import httpx
import pytest
import trio
from fakes.process import environment
from fakes.running import SMALL
from fakes.scene import TOP

SCHEMATHESIS = TOP / ".clients" / "python" / "bin" / "schemathesis"

# What is passed through is the neuron's to judge: it may refuse what fits the document, and take what does not. And a
# header nobody asked for is not "invalid data" in HTTP.
NOT_OURS = "positive_data_acceptance,negative_data_rejection"
# A client that gives us a millisecond gets a 504, as it should, and would drown what else there is to find.
PATIENT = "x-request-deadline-ms: 60000"


async def find_nothing(location, folder, *arguments, besides=NOT_OURS):
    """Run it with a seed, so that what it finds once it finds again."""
    command = [SCHEMATHESIS, "run", location, "--seed", "1", "--max-examples", "30", "--header", PATIENT]
    checks = ["--checks", "all", "--exclude-checks", besides, "--phases", "examples,coverage,fuzzing"]
    done = await trio.run_process(
        list(map(str, [*command, *checks, *arguments])),
        cwd=folder,
        check=False,
        env=environment(NO_COLOR="1"),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()[-8000:]


@pytest.mark.slow
async def test_public_port_is_as_its_document_says(cortex, tmp_path):
    """Names of models are made up, so this is about refusals and windows."""
    await find_nothing(f"{cortex.url}/openapi.json", tmp_path)


@pytest.mark.slow
async def test_answers_of_neurons_are_as_the_document_says(cortex, tmp_path):
    """The same document, but for the only name it lets `model` have: so requests arrive, and come back."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        document = (await client.get(f"{cortex.url}/openapi.json")).json()
    for item in document["paths"].values():
        for operation in item.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                schema = body["schema"]["allOf"][0] if "allOf" in body["schema"] else body["schema"]
                schema["properties"]["model"] = {"enum": ["helexa/small"]}
    [model_id, _] = document["paths"]["/v1/models/{model_id}"]["get"]["parameters"]
    model_id["schema"] = {"enum": ["helexa/small", SMALL]}
    local = tmp_path / "openapi.json"
    local.write_text(json.dumps(document))

    await find_nothing(local, tmp_path, "--url", cortex.url)


TOKEN = ("--header", "Authorization: Bearer secret")
ORDERS = "/admin/(un)?load"


@pytest.mark.slow
async def test_admin_port_is_as_its_document_says(cortex, tmp_path):
    """With the token, and where it is guarded also without."""
    where = f"http://{cortex.addresses.metrics}/openapi.json"
    await find_nothing(where, tmp_path, *TOKEN, "--exclude-path-regex", ORDERS)


@pytest.mark.slow
async def test_orders_are_as_the_document_says(cortex, tmp_path):
    """Loading and unloading: a 503 is an answer there ("in use"); any other 5xx is not in the document."""
    where = f"http://{cortex.addresses.metrics}/openapi.json"
    besides = f"{NOT_OURS},not_a_server_error"
    await find_nothing(where, tmp_path, *TOKEN, "--include-path-regex", ORDERS, besides=besides)
