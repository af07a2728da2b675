"""The structure of the packages: no import cycles, class names that exist once, folders a newcomer can read."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter, defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("catalogue", "gateway", "neuron")
FILES_IN_A_FOLDER = 18
LINES_IN_A_FILE = 450
LINES_OF_TESTS = 500
ABSENT_DOCUMENTS = re.compile(
    r"lessons\.md|design\.md|found\.md|house-map|contract\.md|contract,? section|contract's", re.IGNORECASE
)


@cache
def modules():
    """Dotted name -> path and parsed source of every module."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = (path, ast.parse(path.read_text()))
    return found


def imports(name):
    """The modules of ours that a module imports, anywhere in it: in functions and for type checking as well."""
    _, tree = modules()[name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules() else node.module


def test_modules_do_not_import_each_other_in_circles():
    """Also not for type checking only: a cycle of types is a cycle of ideas."""
    sorter = TopologicalSorter({name: {other for other in imports(name) if other != name} for name in modules()})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_class_names_exist_once():
    """A reader who searches for a class finds one."""
    places = defaultdict(list)
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_folders_and_files_are_small():
    """More than that, and a newcomer does not find the place."""
    folders = Counter(path.parent.relative_to(ROOT) for path, _ in modules().values())
    assert {str(folder): count for folder, count in folders.items() if count > FILES_IN_A_FOLDER} == {}
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path, _ in modules().values()}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_IN_A_FILE} == {}


def test_files_of_tests_are_small():
    """A file tests one subject; what several files share is in tests/fakes or a conftest.py."""
    lengths = {
        str(path.relative_to(ROOT)): path.read_text().count("\n")
        for folder in ("tests", "scripts")
        for path in _files_in(ROOT / folder)
        if path.suffix == ".py"
    }
    assert {name: lines for name, lines in lengths.items() if lines > LINES_OF_TESTS} == {}


def test_packages_say_what_belongs_in_them():
    for name, (path, tree) in modules().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(tree), name
            assert ast.get_docstring(tree) != "Package.", name


def _files_in(folder):
    """Without packages that scripts/install-clients has installed, which are not of this repository."""
    for parent, folders, files in os.walk(folder):
        if "node_modules" in folders:
            folders.remove("node_modules")
        yield from (Path(parent, name) for name in files)


def test_texts_cite_only_documents_of_this_repository():
    """A reader of the repository can open whatever a comment or a page refers to."""
    texts = [path for folder in (*PACKAGES, "tests", "scripts", "docs", "deploy") for path in _files_in(ROOT / folder)]
    texts += [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    cited = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        if path.suffix in {".py", ".md", ".toml", ".sh", ".service", ""} and path.is_file() and path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if ABSENT_DOCUMENTS.search(line)
    }
    assert sorted(cited) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "README.md"])
def test_pages_name_files_that_exist(page):
    """A file that moves takes the page along."""
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`?((?:gateway|catalogue|neuron|tests|scripts|docs)/[\w/.]*\w\.(?:py|md|toml))", text))
    assert {path for path in named if not (ROOT / path).exists()} == set()
