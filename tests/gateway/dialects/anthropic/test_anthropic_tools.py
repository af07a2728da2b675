"""Messages requests: tools that the client defers or runs itself, and how they are offered to a neuron."""

import pytest
from fakes.anthropic_requests import SEARCH, SEPARATE, WEB_SEARCH, messages, outgoing, user

# Deferred tools...


def deferred(name):
    return {"name": name, "description": f"does {name}", "input_schema": {"type": "object"}, "defer_loading": True}


def found(*names):
    """A tool result of a client's own search, with references to these tools."""
    references = [{"type": "tool_reference", "tool_name": name} for name in names]
    return user([{"type": "tool_result", "tool_use_id": "a", "content": references}])


def changed(kind, **tool):
    return {"role": "system", "content": [{"type": kind, "tool": tool}]}


def by_name(kind, name):
    return changed(kind, type="tool_reference", name=name)


NOVELTY = {"name": "Novelty", "description": "new", "input_schema": {"type": "object", "properties": {"z": {}}}}


@pytest.mark.parametrize(
    ("turns", "offered"),
    [
        ([], ["Search"]),
        ([found("C")], ["Search", "C"]),
        ([found("C"), user("and"), found("A", "C")], ["Search", "C", "A"]),
        ([found("nowhere")], ["Search"]),
        ([by_name("tool_addition", "B")], ["Search", "B"]),
        ([by_name("tool_addition", "B"), by_name("tool_removal", "B")], ["Search"]),
        ([by_name("tool_removal", "Search")], []),
        ([by_name("tool_removal", "Search"), by_name("tool_addition", "Search")], ["Search"]),
        ([changed("tool_addition", type="tool_definition", definition=NOVELTY)], ["Search", "Novelty"]),
        ([{"role": "system", "content": [{"type": "tool_addition"}]}], ["Search"]),
    ],
)
def test_deferred_tool_is_offered_once_the_conversation_loads_it(turns, offered):
    """Appended in the order of loading, so that the earlier tools keep their place in the prompt."""
    body = {"messages": [user("hi"), *turns], "tools": [deferred("A"), SEARCH, deferred("B"), deferred("C")]}

    assert [tool["function"]["name"] for tool in outgoing(body).get("tools", [])] == offered


def test_tool_defined_in_a_turn_is_offered():
    """With its definition, although `tools` does not have it."""
    turn = changed("tool_addition", type="tool_definition", definition=NOVELTY)
    [tool] = outgoing({"messages": [user("hi"), turn]})["tools"]

    assert tool["function"] == {"name": "Novelty", "description": "new", "parameters": NOVELTY["input_schema"]}


def test_tool_changes_are_written_into_the_turn():
    """At their place in the conversation, after the turn's own text."""
    turn = {
        "role": "system",
        "content": [
            {"type": "text", "text": "Listen."},
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "A"}},
            {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "B"}},
        ],
    }
    text = "Listen.\n[tool A is available]\n[tool B is no longer available]"

    sent = messages(user("hi"), turn, backend=SEPARATE)
    assert sent[1] == user(f"<system-reminder>\n{text}\n</system-reminder>")


def test_tools_for_anthropics_own_search_are_all_offered():
    """Only Anthropic's servers can run that search, and without tools the model could do nothing."""
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    sent = outgoing({"messages": [user("hi")], "tools": [search, deferred("A"), deferred("B")]})

    assert [tool["function"]["name"] for tool in sent["tools"]] == ["A", "B"]


def test_deferred_tool_can_be_chosen():
    """`tool_choice` loads the tool that it names."""
    sent = outgoing({"messages": [user("hi")], "tools": [deferred("A")], "tool_choice": {"type": "tool", "name": "A"}})

    assert [tool["function"]["name"] for tool in sent["tools"]] == ["A"]


@pytest.mark.parametrize(
    ("tool", "name", "required", "some_fields"),
    [
        ({"type": "bash_20250124", "name": "bash"}, "bash", [], {"command", "restart"}),
        ({"type": "bash_20991231"}, "bash", [], {"command"}),
        (
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 1000},
            "str_replace_based_edit_tool",
            ["command", "path"],
            {"insert_text", "view_range"},
        ),
        (
            {"type": "text_editor_20250124", "name": "str_replace_editor"},
            "str_replace_editor",
            ["command", "path"],
            {"new_str"},
        ),
        ({"type": "memory_20250818", "name": "memory"}, "memory", ["command"], {"old_path", "insert_text"}),
        (
            {"type": "computer_20250124", "name": "computer", "display_width_px": 800, "display_height_px": 600},
            "computer",
            ["action"],
            {"coordinate", "scroll_direction"},
        ),
        (
            {"type": "computer_20251124", "name": "computer", "enable_zoom": True},
            "computer",
            ["action"],
            {"region"},
        ),
    ],
)
def test_client_run_tool_is_offered_with_a_schema(tool, name, required, some_fields):
    """The client runs it, so a model of any kind can call it; a choice that forces it is kept."""
    choice = {"type": "tool", "name": name}
    sent = outgoing({"messages": [user("hi")], "tools": [tool, WEB_SEARCH], "tool_choice": choice})
    [function] = [tool["function"] for tool in sent["tools"]]

    assert function["name"] == name
    assert function["description"]
    assert function["parameters"]["required"] == required
    assert some_fields <= function["parameters"]["properties"].keys()
    assert sent["tool_choice"] == {"type": "function", "function": {"name": name}}


def test_client_run_tools_describe_their_version():
    """Older text editors can undo; a screen's size is part of what the model must know."""

    def function(**tool):
        return outgoing({"messages": [user("hi")], "tools": [tool]})["tools"][0]["function"]

    def commands(type_):
        return function(type=type_, name="e")["parameters"]["properties"]["command"]["enum"]

    assert "undo_edit" in commands("text_editor_20250124")
    assert "undo_edit" not in commands("text_editor_20250728")
    computer = function(type="computer_20241022", name="c", display_width_px=800, display_height_px=600)
    assert "800 pixels wide and 600 pixels high" in computer["description"]
    assert "scroll" not in computer["parameters"]["properties"]["action"]["enum"]


def test_examples_of_a_tools_input_are_described():
    """Chat completions has no field for them, and the model would have seen them."""
    tool = {**SEARCH, "description": "Finds.", "input_examples": [{"q": "a"}, {"q": "b"}]}
    [sent] = outgoing({"messages": [user("hi")], "tools": [tool]})["tools"]

    assert sent["function"]["description"] == 'Finds.\n\nExamples of input:\n{"q":"a"}\n{"q":"b"}'


def test_tools_without_a_name_may_stand_beside_others():
    """`mcp_toolset` has none; Anthropic's servers run it."""
    tools = [SEARCH, {"type": "mcp_toolset", "mcp_server_name": "x"}]

    assert len(outgoing({"messages": [user("hi")], "tools": tools})["tools"]) == 1
