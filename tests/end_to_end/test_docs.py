"""What the pages show works: Python blocks run in order in one namespace a page, and so do `kedit` command lines."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from endpoint_server import ModelServer

from kedit_core import Editor
from kedit_core.evaluation import Answers

REPO = Path(__file__).parents[2]
PAGES = sorted(
    [
        REPO / "README.md",
        *(REPO / "docs").rglob("*.md"),
        *REPO.glob("kedit_*/README.md"),
        *REPO.glob("plugins/*/README.md"),
    ]
)
ENDPOINT = "http://127.0.0.1:8000/v1"  # pages write this; tests serve on a free port
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    text = page.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def commands(block: str) -> list[list[str]]:
    joined = block.replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in joined.splitlines() if line.startswith("kedit ")]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """URL of a server on this machine, behind which a FactWorld model answers."""
    pytest.importorskip("openai")
    editor = Editor.from_pretrained("factworld:llama-reader")
    server = ModelServer(Answers(editor.model, editor.adapter, editor.tokens))
    with server.running():
        yield server.url


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from kedit_core.cli.root import kedit

    monkeypatch.chdir(tmp_path)
    server = request.getfixturevalue("endpoint") if ENDPOINT in page.read_text() else ENDPOINT
    module = ModuleType("docs_page")  # what a page defines can be named as "docs_page:Name", as in a module of its own
    monkeypatch.setitem(sys.modules, "docs_page", module)
    for language, block, line in blocks(page):
        block = block.replace(ENDPOINT, server)
        if language == "python":
            code = compile("\n" * (line - 1) + block, str(page), "exec")
            exec(code, module.__dict__)
        elif language in ("bash", "console", "sh"):
            for arguments in commands(block):
                with pytest.raises(SystemExit) as end:
                    kedit.main(arguments, prog_name="kedit")
                assert end.value.code == 0, f"{page}:{line}: kedit {shlex.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page}: {target} does not exist"
