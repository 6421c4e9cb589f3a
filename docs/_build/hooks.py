"""What `mkdocs build` asks for beside the pages of docs/: tables made from the code, and pages that lie elsewhere.

mkdocs calls these functions by their names (mkdocs.yml, `hooks`); what they do is in the package beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from kedit_core.errors import KeditError
from site_parts.elsewhere import Elsewhere
from site_parts.lists import respace
from site_parts.markers import fill

REPO = Path(__file__).parents[2]
_PACKAGES = "Packages"  # the section of the navigation that is filled in here


def on_config(config: Any) -> Any:
    """List the pages of the packages, whatever packages there are, in the section that is kept free for them."""
    config.nav = _with_packages(config.nav, [{name: page} for name, page in Elsewhere(REPO).packages().items()])
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the READMEs of the packages, the changelog and the results, which lie outside docs/."""
    for source, page in Elsewhere(REPO).pages.items():
        files.append(File.generated(config, page, content=(REPO / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill the markers of a page, write its lists for Python-Markdown, lead its links to pages of the site."""
    name: str = page.file.src_uri
    try:
        return Elsewhere(REPO).links(respace(fill(markdown, REPO)), name)
    except (ValueError, KeditError) as error:
        raise PluginError(f"{name}: {error}") from error


def _with_packages(nav: Any, packages: list[Any]) -> Any:
    if isinstance(nav, list):
        return [_with_packages(each, packages) for each in nav]
    if isinstance(nav, dict):
        return {name: packages if name == _PACKAGES else _with_packages(each, packages) for name, each in nav.items()}
    return nav
