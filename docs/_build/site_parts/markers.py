"""Markers in pages, ``<!-- settings: rome -->``, and what takes their place when the site is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from kedit_core.contract import MethodInfo
from kedit_core.hparams import HyperParams
from kedit_core.plugins import METHODS, Catalogue
from site_parts.about import about_table
from site_parts.commands import command_reference
from site_parts.presets import presets_table
from site_parts.results import compared_table, results_table
from site_parts.settings import settings_table

MARKER = re.compile(r"^<!-- (?P<name>[a-z-]+)(?:: (?P<method>\w+))? -->$", re.MULTILINE)


def fill(markdown: str, repo: Path) -> str:
    """The page with every marker that is one of ours replaced; others are left as the comments they are."""

    installed = Catalogue.installed()

    def replacement(found: re.Match[str]) -> str:
        name, method = found["name"], found["method"]
        if method is not None and name in OF_METHOD:
            return OF_METHOD[name](installed, installed.method(method), repo)
        if method is None and name in PLAIN:
            return PLAIN[name](installed, repo)
        return found[0]

    return MARKER.sub(replacement, markdown)


def _settings(installed: Catalogue, info: MethodInfo, repo: Path) -> str:
    return settings_table(installed.hparams_class(info))


def _training(installed: Catalogue, info: MethodInfo, repo: Path) -> str:
    return settings_table(training_class(info))


def _about(installed: Catalogue, info: MethodInfo, repo: Path) -> str:
    return about_table(info, installed.distribution_of(METHODS, info.name))


def training_class(info: MethodInfo) -> type[HyperParams]:
    """The settings that a method's editor is trained with.

    Raises:
        ValueError: it trains none.
    """
    if info.training is None:
        raise ValueError(f"{info.name} trains no editor")
    module, _, name = info.training.partition(":")
    found: type[HyperParams] = getattr(import_module(module), name)
    return found


OF_METHOD: Mapping[str, Callable[[Catalogue, MethodInfo, Path], str]] = {
    "about": _about,
    "settings": _settings,
    "training-settings": _training,
    "presets": lambda installed, info, repo: presets_table(info.presets),
    "training-presets": lambda installed, info, repo: presets_table(info.training_presets),
    "results": lambda installed, info, repo: results_table(repo, info.name),
}
PLAIN: Mapping[str, Callable[[Catalogue, Path], str]] = {
    "compared": lambda installed, repo: compared_table(repo, [each for _, each in sorted(installed.methods().items())]),
    "commands": lambda installed, repo: command_reference(),
}
