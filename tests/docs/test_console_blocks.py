"""Every console block of the documentation is run against a demo, and prints what the page says."""

import pytest
from fakes.console_page import TOP, commands, differences, pattern, run_page

PAGES = [page for page in [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))] if commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_page_prints_what_it_says(page):
    """A page's blocks are one session."""
    wrong = []
    for command, code, output in run_page(page):
        difference = differences(command.output, output)
        if difference is not None or code != command.exit_code:
            wrong.append(f"$ {command.text}\n{difference or ''}\nexit code {code}, not {command.exit_code}")
    assert not wrong, "\n\n".join(wrong)


def test_numbers_may_differ_and_words_may_not():
    """The tests above can fail."""
    assert differences(["in force: generation 2, after 54 ms"], ["in force: generation 7, after 1,054.3 ms"]) is None
    assert differences(["file d5ec28115e"], ["file 0a1b2c3d4e"]) is None
    assert differences(["a  b"], ["a        b   "]) is None
    assert differences(["a", "…", "z"], ["a", "m", "n", "z"]) is None
    assert differences(["a", "…", "z"], ["a", "m", "n"])
    assert differences(["in force: generation 2"], ["not in force: generation 2"])
    assert differences([], ["a warning"])
    assert pattern("x 1") != pattern("y 1")
