"""Control characters and terminal escapes from outside are shown, not sent to a terminal."""

import io
import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import terminal
from gateway.cli.views import status_view
from gateway.telemetry.log import _console, _encode, _LibraryFormatter
from gateway.telemetry.printable import one_line, printable, printable_json

EVIL = "m\x1b[31m\x1b]0;owned\x07\x9b2J\r\u202elmth\u2028\x00\x7f\ud800"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SHOWN = "m\\x1b[31m\\x1b]0;owned\\x07\\x9b2J\\r\\u202elmth\\u2028\\x00\\x7f\\ud800"


@given(st.text(st.characters()))
def test_nothing_unsafe_is_left(text):
    """Of any text; one without unsafe characters stays as it is."""
    assert not UNSAFE.search(printable(text).replace("\t", ""))
    assert not UNSAFE.search(one_line(text))
    assert "\n" not in one_line(text)
    if not UNSAFE.search(text) and text.isprintable():
        assert printable(text) == one_line(text) == text


def test_names_in_every_script_stay():
    """Only what a terminal would obey is escaped."""
    assert one_line("Qwen/Qwen3 模型 émoji 🦀") == "Qwen/Qwen3 模型 émoji 🦀"


def test_json_keeps_its_meaning():
    """Escaped as JSON escapes."""
    text = printable_json(json.dumps({EVIL: EVIL}, ensure_ascii=False))
    assert not UNSAFE.search(text)
    assert json.loads(text) == {EVIL: EVIL}


@pytest.mark.parametrize("colors", [False, True])
def test_console_log_has_no_control_characters_of_others(colors):
    """In values of every type, the event and the traceback; a value cannot make a line of its own."""
    event = {"event": EVIL, "level": "info", "model": EVIL, "many": [EVIL], "table": {EVIL: EVIL}, "name": "a\nb"}
    try:
        int(EVIL + "\nsecond line")
    except ValueError as error:
        error.args = (EVIL + "\nsecond line",)
        event["exc_info"] = sys.exc_info()
    text = event
    for step in _console(colors=colors):
        text = step(None, "info", text)
    ours = re.sub(r"\x1b\[[0-9;]*m", "", text) if colors else text
    assert not UNSAFE.search(ours)
    assert SHOWN.removesuffix("\\ud800") in ours
    assert "\nb" not in ours
    assert "\nsecond line" in ours, "a traceback keeps its lines"


def test_json_log_has_no_control_characters():
    """Not even those that JSON allows."""
    line = _encode({"event": "seen", "model": "m\x9b2J\u202ex", "plain": "模型"})
    assert not UNSAFE.search(line.decode())
    assert json.loads(line) == {"event": "seen", "model": "m\x9b2J\u202ex", "plain": "模型"}


def test_log_lines_of_libraries_are_escaped():
    """They may quote what a client sent."""
    record = logging.LogRecord("hypercorn", logging.WARNING, "", 0, "bad path %s", ("/\x1b[2J",), None)
    assert _LibraryFormatter("%(message)s").format(record) == "bad path /\\x1b[2J"


def test_console_of_commands_escapes_whatever_it_prints(capsys):
    """Plain text, tables, entries, errors and JSON."""
    out = terminal.console()
    table = terminal.table("names", "name", "state")
    table.add_row(EVIL, "two\nlines")
    out.print(EVIL, table, terminal.entry(EVIL, EVIL))
    out.print(EVIL, soft_wrap=True, style="bold")
    terminal.print_error(EVIL)
    terminal.print_json({EVIL: [EVIL]})
    terminal.Progress(terminal.print_error).report(EVIL)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not UNSAFE.search(text)
    assert "two\\nlines" in printed.out
    assert printed.out.count("\\x1b[31m") >= 5


def test_terminal_gets_our_own_colours_only(monkeypatch):
    """The styles of a real terminal stay."""
    screen = io.StringIO()
    out = terminal.console()
    monkeypatch.setattr(out, "_force_terminal", True)
    out.file, out._color_system = screen, None
    out.print(terminal.entry("m\x1b[31m"))
    assert "m\\x1b[31m" in screen.getvalue()


def test_status_shows_hostile_names_and_statuses(capsys, monkeypatch):
    """Names and statuses of a neuron."""
    monkeypatch.setenv("COLUMNS", "500")  # so that no table cell is folded
    catalogue = {"generation": 1, "path": EVIL, "error": None}
    health = {"status": EVIL, "nodes": {"healthy": 1, "total": 1}, "catalogue": catalogue}
    place = {"node": EVIL, "status": EVIL, "vram_estimate_mb": 1}
    model = {"id": EVIL, "loaded": True, "feasible_on": [EVIL], "locations": [place], "alias_of": None}
    alias = model | {"id": EVIL + "2", "alias_of": EVIL}
    terminal.console().print(status_view.render({"health": health, "models": [model, alias], "admin_error": EVIL}))
    shown = capsys.readouterr().out
    assert not UNSAFE.search(shown)
    assert SHOWN in shown
