"""The ```console blocks of one page, run in one shell against a demo of their own, as a reader would.

`PYTHONPATH=tests python -m fakes.console_page docs/tutorial.md` runs a page and writes the outputs into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"\[exit code (\d+)\]")
END = "-- end of a command:"
DEMO = re.compile(r"^(?:cortex|scripts/)\s*demo\b")
SHOWN_PORT = 31313  # of the page; the admin port is the next one
COMMAND_S = 120


@dataclass
class Command:
    """One `$` line with its `>` lines, and what the page says it prints."""

    text: str
    expected: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        match = EXIT_CODE.fullmatch(self.expected[-1]) if self.expected else None
        return int(match[1]) if match else 0

    @property
    def output(self) -> list[str]:
        return self.expected[:-1] if self.exit_code else self.expected


def commands(page: Path) -> list[list[Command]]:
    """The commands of each block."""
    blocks = []
    for block in BLOCK.findall(page.read_text()):
        found: list[Command] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            elif (line == ">" or line.startswith("> ")) and not found[-1].expected:
                found[-1].text += "\n" + line[2:]
            elif line.strip():
                found[-1].expected.append(line)
        blocks.append(found)
    return blocks


class Shell:
    """One bash for a page, with a home directory of its own that has this checkout as ~/cortex."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (self._home / "cortex").symlink_to(TOP)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CORTEX_", "XDG_"))}
        self._environment = inherited | {
            "HOME": str(self._home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VENV": sys.prefix,
            "COLUMNS": "200",
            "EDITOR": "false",
        }
        self._bash = self._start(["bash"], stdin=subprocess.PIPE)
        self._known: dict[str, str] = {}  # what the demo printed, in place of what the page shows

    def _start(self, command: list[str], **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=self._home,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self._stack.callback(_end, process)
        return process

    def run(self, text: str) -> tuple[int, list[str]]:
        """The exit code and the lines that it printed."""
        if DEMO.match(text):
            return 0, self._start_demo(text)
        for shown, actual in self._known.items():
            text = text.replace(shown, actual)
        self._bash.stdin.write(f"{text}\nended=$?; echo; echo '{END}' $ended\n")
        self._bash.stdin.flush()
        lines = []
        for line in self._bash.stdout:
            if line.startswith(END):
                while lines and not lines[-1]:
                    lines.pop()
                return int(line[len(END) :]), lines
            lines.append(self._as_shown(line.rstrip()))
        raise AssertionError(f"the shell ended in: {text}")

    def _as_shown(self, line: str) -> str:
        for shown, actual in self._known.items():
            line = line.replace(actual, shown)
        return line

    def _start_demo(self, text: str) -> list[str]:
        arguments = text.split()[1:]
        demo = self._start([sys.executable, "-m", "gateway.cli", *arguments, "--port", "0"])
        lines = []
        for line in demo.stdout:
            lines.append(line.rstrip())
            if "Ctrl-C ends it" in line:
                break
        printed = "\n".join(lines)
        addresses = re.search(r"http://127\.0\.0\.1:(\d+) .*http://127\.0\.0\.1:(\d+)", printed)
        assert addresses, f"the demo printed no addresses: {printed}"
        api, admin = addresses.groups()
        key = re.search(r"(?:CORTEX_KEY|CORTEX_ADMIN__TOKEN)=(\S+)", printed)[1]
        files = re.search(r"^files: (\S+)", printed, re.MULTILINE)[1]
        self._known = {
            f":{SHOWN_PORT}": f":{api}",
            f":{SHOWN_PORT + 1}": f":{admin}",
            "CORTEX_KEY=…": f"CORTEX_KEY={key}",
            "/tmp/cortex-demo": files,  # noqa: S108 - as the page shows it
        }
        return [self._as_shown(line) for line in lines]


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    with process.stdout:
        try:
            process.wait(timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pattern(line: str) -> str:
    """A line of a page as a regular expression: numbers, times and hashes may differ, and `…` is anything."""
    wild = re.sub(r"…", "\0", line)
    wild = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "\1", wild)
    wild = re.sub(r"\d+(?:[.,:]\d+)*", "\1", wild)
    parts = re.split(r"([\0\1]| {2,})", wild.strip())
    special = {"\0": ".*", "\1": r"[0-9a-f][0-9a-f.,:]*"}
    return "".join(special.get(part, r"\s+" if part.isspace() and part else re.escape(part)) for part in parts)


def differences(expected: list[str], actual: list[str]) -> str | None:
    """None if the output is as the page says; a line `…` stands for any number of lines."""
    text = "\n".join(line.strip() for line in actual if line.strip())
    lines = [r"(?:.*\n?)*?" if line.strip() == "…" else pattern(line) + r"\s*" for line in expected if line.strip()]
    if re.fullmatch("".join(lines) if lines else "", text):
        return None
    return "the page says:\n  " + "\n  ".join(expected) + "\nthe command prints:\n  " + "\n  ".join(actual)


def run_page(page: Path) -> list[tuple[Command, int, list[str]]]:
    """Run every command of the page; each with its exit code and output."""
    with ExitStack() as stack:
        shell = Shell(stack)
        return [(each, *shell.run(each.text)) for block in commands(page) for each in block]


def rewrite(page: Path) -> None:
    """Write the present outputs into the page."""
    results = iter(run_page(page))
    text = page.read_text()

    def block(match: re.Match[str]) -> str:
        lines = []
        for _ in commands_of(match[1]):
            command, code, output = next(results)
            lines += [
                "$ "
                + re.sub(
                    r"\n(.?)",
                    lambda found: f"\n> {found[1]}".rstrip() if not found[1] else f"\n> {found[1]}",
                    command.text,
                )
            ]
            keep = any("…" in line for line in command.output) and differences(command.output, output) is None
            printed = command.output if keep else [line for line in output if line]
            printed += [f"[exit code {code}]"] if code else []
            lines += [*printed, ""] if printed else []
        return "```console\n" + "\n".join(lines).strip() + "\n```"

    page.write_text(BLOCK.sub(block, text))


def commands_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.startswith("$ ")]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name))
