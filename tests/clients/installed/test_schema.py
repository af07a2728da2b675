"""schemathesis reads the OpenAPI documents and sends every kind of request that they allow.

It looks for a 5xx, a status, content type or header that is not in the document, a body that differs from its
description, and a method that should not be served.
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

# The neuron decides about what passes through: it may refuse what fits the document, and accept what does not. And an
# unknown header is not "invalid data" in HTTP.
NOT_OURS = "positive_data_acceptance,negative_data_rejection"
# A deadline of a millisecond causes a 504, correctly, and would hide other findings.
PATIENT = "x-request-deadline-ms: 60000"

# 428 is for a missing If-Match.
CONFIG = "[checks.missing_required_header]\nexpected-statuses = [400, 401, 428]\n"
HOOKS = "import schemathesis\nschemathesis.serializer.alias('application/toml', 'text/plain')\n"


async def find_nothing(location, folder, *arguments, besides=NOT_OURS):
    """Run it with a seed, so that a finding can be repeated."""
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [SCHEMATHESIS, "run", location, "--seed", "1", "--max-examples", "30", "--header", PATIENT]
    checks = ["--checks", "all", "--exclude-checks", besides, "--phases", "examples,coverage,fuzzing"]
    done = await trio.run_process(
        list(map(str, [*command, *checks, *arguments])),
        cwd=folder,
        check=False,
        env=environment(NO_COLOR="1", SCHEMATHESIS_HOOKS="hooks", PYTHONPATH=str(folder)),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()[-8000:]


@pytest.mark.slow
async def test_public_port_matches_its_document(cortex, tmp_path):
    """Model names are random, so this tests refusals and the catalogue routes."""
    await find_nothing(f"{cortex.url}/openapi.json", tmp_path)


@pytest.mark.slow
async def test_answers_of_neurons_match_the_document(cortex, tmp_path):
    """The same document, but `model` has only one allowed name: so requests reach a neuron."""
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
async def test_admin_port_matches_its_document(cortex, tmp_path):
    """With the token, and on guarded routes also without it."""
    where = f"http://{cortex.addresses.metrics}/openapi.json"
    # Names of aliases have slashes, so `PUT /admin/aliases/NAME/rollout` is not an unknown method: it adds an alias.
    besides = f"{NOT_OURS},unsupported_method,allow_header_conformance"
    # Events never end, and the playground is the public port's inference.
    left_out = f"({ORDERS}|/admin/events|/admin/playground)"
    await find_nothing(where, tmp_path, *TOKEN, "--exclude-path-regex", left_out, besides=besides)


@pytest.mark.slow
async def test_load_and_unload_match_the_document(cortex, tmp_path):
    """A 503 is a documented answer there ("in use"); no other 5xx is."""
    where = f"http://{cortex.addresses.metrics}/openapi.json"
    besides = f"{NOT_OURS},not_a_server_error"
    await find_nothing(where, tmp_path, *TOKEN, "--include-path-regex", ORDERS, besides=besides)
