"""The code blocks of docs/clients.md, ready to run against a test's gateway."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fakes.scene import TOP

PAGE = TOP / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:31313"


@dataclass(frozen=True)
class Block:
    """One block of code; `name` is its language and what it imports."""

    language: str
    code: str

    @property
    def name(self) -> str:
        imported = re.findall(r"^(?:from|import) ([\w]+)|from \"([^\"]+)\"", self.code, re.MULTILINE)
        return f"{self.language}-" + "-".join(one or other for one, other in imported)

    def written(self, folder: Path, url: str) -> Path:
        """Write it to a file, with this gateway's address in place of the page's."""
        suffix = {"python": ".py", "javascript": ".mjs", "sh": ".sh"}[self.language]
        path = folder / f"example{suffix}"
        assert ADDRESS in self.code
        path.write_text(self.code.replace(ADDRESS, url))
        return path


FENCED = re.compile(r"^```(python|javascript|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [Block(language, code) for language, code in FENCED.findall(PAGE.read_text())]


def settings(program: str, url: str) -> str:
    """The first block after a program's bold name: the settings that its user writes, with this gateway's address."""
    _, _, rest = PAGE.read_text().partition(f"**{program}**")
    found = ANY_FENCED.search(rest)
    assert found is not None, f"the page has no settings for {program}"
    assert ADDRESS in found[1]
    return found[1].replace(ADDRESS, url)


ANY_FENCED = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
