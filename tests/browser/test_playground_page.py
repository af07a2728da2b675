"""The playground: answers side by side, tools, images, parameters, and the same as code."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys

import pytest
from fakes.browser import MIDDLE, SMALL, go, keep_screenshot
from fakes.process import environment
from playwright.sync_api import expect

PROMPT = """What is the capital of Georgia? It's "true", null or false,\n$HOME `id`."""
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d"
    "0000000049454e44ae426082"
)


def test_playground_asks_two_aliases(open_page):
    page = open_page()
    go(page, "Playground")
    page.get_by_label("Alias or model").select_option("helexa/small")
    page.get_by_label("Beside it").select_option("helexa/balanced")
    page.get_by_label("Prompt").fill("What is the capital of Georgia?")
    page.get_by_role("button", name="Send").click()
    for alias, model in (("helexa/small", SMALL), ("helexa/balanced", MIDDLE)):
        answer = page.get_by_role("article", name=f"Answer of {alias}")
        expect(answer).to_contain_text("Tbilisi")
        expect(answer).to_contain_text("done")
        expect(answer).to_contain_text(model)
        expect(answer).to_contain_text("tokens/s")
    page.get_by_role("button", name="Python").click()
    expect(page.locator("pre.code").last).to_contain_text('model="helexa/small"')
    keep_screenshot(page, "playground")


def test_playground_offers_tools(open_page):
    """The answer shows the call. Tools that are not JSON are not sent."""
    page = open_page()
    go(page, "Playground")
    page.get_by_label("Alias or model").select_option("helexa/small")
    page.get_by_label("Prompt").fill("Please call get_weather")
    page.get_by_text("Tools and image").click()
    page.get_by_label("Tools, as JSON").fill("[{")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".toast.bad")).to_contain_text("not valid JSON")
    page.get_by_label("Tools, as JSON").fill(json.dumps(TOOLS))
    page.get_by_role("button", name="Send").click()
    answer = page.get_by_role("article", name="Answer of helexa/small")
    expect(answer.locator("pre.code")).to_contain_text("get_weather({")
    expect(answer).to_contain_text("done")
    keep_screenshot(page, "playground-tools")


@pytest.fixture
def filled(open_page):
    """A page whose playground has everything: texts with every quote, parameters, tools and an image."""
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    go(page, "Playground")
    page.get_by_label("Alias or model").select_option("helexa/small")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("System message").fill("Answer in one word.")
    for label, value in (("Temperature", "0.5"), ("Top p", "0.9"), ("At most, tokens", "50"), ("Seed", "7")):
        page.get_by_label(label).fill(value)
    page.get_by_text("Tools and image").click()
    page.get_by_label("Tools, as JSON").fill(json.dumps(TOOLS))
    page.get_by_label("Image").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": PNG})
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    return page


def copied(page, language):
    page.get_by_role("group", name="Language").get_by_role("button", name=language).click()
    page.get_by_role("region", name="The same as code").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return page.evaluate("navigator.clipboard.readText()")


def test_playground_sends_images_and_parameters_and_so_does_its_code(filled):
    """The copied curl and Python are run, and are what the page itself sends."""
    with filled.expect_request("**/admin/playground/**") as sent:
        filled.get_by_role("button", name="Send").click()
    expect(filled.get_by_role("article", name="Answer of helexa/small")).to_contain_text("done")
    body = sent.value.post_data_json
    del body["stream_options"]
    [system, user] = body["messages"]
    assert (system["content"], user["content"][0]["text"]) == ("Answer in one word.", PROMPT)
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed", "tools")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 50,
        "seed": 7,
        "tools": TOOLS,
    }
    python = copied(filled, "Python")
    assert arguments_of(python) == body
    assert "Tbilisi" in output([sys.executable, "-c", python])
    curl = copied(filled, "curl")
    assert json.loads(curl.split("<<'END'\n")[1].removesuffix("END")) == body
    assert '"finish_reason":"stop"' in output(["bash", "-c", curl])
    javascript = copied(filled, "JavaScript")
    assert json.loads(javascript.split("create(")[1].split(");\n")[0]) == body


def test_code_without_an_image_is_one_command(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    go(page, "Playground")
    page.get_by_label("Alias or model").select_option("helexa/small")
    page.get_by_label("Prompt").fill(PROMPT)
    curl = copied(page, "curl")
    assert json.loads(shlex.split(curl)[-1])["messages"] == [{"role": "user", "content": PROMPT}]
    assert '"finish_reason":"stop"' in output(["bash", "-c", curl])


def output(command):
    done = subprocess.run(command, capture_output=True, check=False, env=environment(CORTEX_KEY=""))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def arguments_of(python):
    """The arguments of the call `create(…)` in a program."""
    [call] = [
        node
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "create"
    ]
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
