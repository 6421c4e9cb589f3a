"""`make docs`: the site builds without a warning, its links lead somewhere, and it loads nothing from anywhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("material", reason="needs mkdocs-material: pip install 'kedit[docs]'")

REPO = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"(?:[a-z]+:)?//")


class Links(HTMLParser):
    """What a page loads, where it leads to, and the names of its places."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.led_to: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if "src" in given:
            self.loaded.append(given["src"])
        if "href" in given:
            (self.led_to if tag == "a" else self.loaded).append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPO,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_every_page_of_docs_is_in_the_site_and_so_are_the_packages(site: Path) -> None:
    wanted = {page.relative_to(REPO / "docs").with_suffix(".html") for page in (REPO / "docs").rglob("*.md")}
    packages = [*REPO.glob("kedit_*/README.md"), *REPO.glob("plugins/*/README.md")]
    wanted |= {Path("packages", page.parent.name.replace("_", "-") + ".html") for page in packages}
    made = {page.relative_to(site) for page in site.rglob("*.html")}
    assert wanted <= made
    assert Path("changelog.html") in made


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        assert not [each for each in links.loaded if ELSEWHERE.match(each)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:[a-z]+:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_page_and_a_place_in_it(site: Path, pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        if page.name == "404.html":  # its links begin at the root of wherever the site is put
            continue
        for link in links.loaded + links.led_to:
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, place = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if place and target in pages and not place.startswith("__"):
                assert place in pages[target].ids, f"{page.relative_to(site)}: {link}"


@pytest.mark.slow
def test_tables_are_filled_and_pages_are_found_by_the_search(site: Path) -> None:
    page = (site / "methods" / "rome.html").read_text(encoding="utf-8")
    assert "<code>clamp_norm_factor</code>" in page and "factworld-llama" in page and "0.990" in page
    assert "<!-- settings" not in page
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any(each["location"].startswith("methods/alphaedit.html") for each in index["docs"])
    for word in ("::: kedit_core", ":class:", ":meth:"):
        assert not [each["location"] for each in index["docs"] if word in each["text"]]
