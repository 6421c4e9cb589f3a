"""Pages of the site that lie outside docs/: READMEs of packages, the changelog, the results.

Links are written for readers of the repository (`../kedit_core/README.md`), and led to the page of the site here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_SINGLE = {
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "measured/benchmarks.md",
    "benchmarks/results/README.md": "measured/results.md",
}
_HOME = {"README.md": "index.md", "docs": "index.md"}


class Elsewhere:
    """Where files of the repository are in the site.

    Attributes:
        pages: path in the repository -> path in the site, of all that is added to docs/.
    """

    def __init__(self, repo: Path) -> None:
        readmes = sorted([*repo.glob("kedit_*/README.md"), *repo.glob("plugins/*/README.md")])
        packages = {
            str(each.relative_to(repo)): f"packages/{each.parent.name.replace('_', '-')}.md" for each in readmes
        }
        self.pages: Mapping[str, str] = {**packages, **_SINGLE}
        self._sources = {page: source for source, page in self.pages.items()}

    def packages(self) -> dict[str, str]:
        """Distribution -> page of its README."""
        return {Path(page).stem: page for page in self.pages.values() if page.startswith("packages/")}

    def links(self, markdown: str, page: str) -> str:
        """The text of a page (named as the site names it), its relative links as they are in the site."""
        source = self._sources.get(page, f"docs/{page}")
        here = posixpath.dirname(page)

        def led(found: re.Match[str]) -> str:
            target = self._place(source, found[2])
            return found[0] if target is None else f"{found[1]}{posixpath.relpath(target, here or '.')}{found[3]}"

        parts, end = [], 0
        for fence in _FENCED.finditer(markdown):
            parts += [_LINK.sub(led, markdown[end : fence.start()]), fence[0]]
            end = fence.end()
        return "".join([*parts, _LINK.sub(led, markdown[end:])])

    def _place(self, source: str, target: str) -> str | None:
        """Where in the site a link of a file of the repository leads; None to leave it as it is."""
        if re.match(r"[a-z]+:", target) or target.startswith("/"):
            return None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if found := self.pages.get(path) or _HOME.get(path):
            return found
        return path.removeprefix("docs/") if path.startswith("docs/") else None
