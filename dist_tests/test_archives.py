"""What is in the wheels and sdists: all that a package needs, nothing else, and metadata that tells what it is."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from places import REPO, archive, projects

PROJECTS = projects()
WITH_CODE = [name for name in PROJECTS if name != "kedit"]


def wheel(name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive(name, ".whl"))


def info(name: str, file: str) -> bytes:
    with wheel(name) as opened:
        (path,) = (each for each in opened.namelist() if re.fullmatch(rf"[^/]+\.dist-info/{file}", each))
        return opened.read(path)


def metadata(name: str) -> Message:
    return message_from_bytes(info(name, "METADATA"))


def sources(name: str) -> set[str]:
    """Files of a distribution's packages in the repository, relative to src/."""
    src = PROJECTS[name] / "src"
    found = (each for each in src.rglob("*") if each.is_file())
    return {
        each.relative_to(src).as_posix()
        for each in found
        if "__pycache__" not in each.parts and not any(part.endswith(".egg-info") for part in each.parts)
    }


@pytest.mark.parametrize("name", WITH_CODE)
def test_a_wheel_holds_the_package_and_nothing_else(name: str) -> None:
    package = name.replace("-", "_")
    with wheel(name) as opened:
        assert opened.testzip() is None
        held = {each for each in opened.namelist() if ".dist-info/" not in each}
    assert held == sources(name)  # presets, models, style sheets: all of it
    assert {each.split("/")[0] for each in held} == {package} and f"{package}/py.typed" in held


@pytest.mark.parametrize("name", PROJECTS)
def test_metadata(name: str) -> None:
    told = metadata(name)
    project = tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text())["project"]
    assert (told["Name"], told["Version"], told["Requires-Python"]) == (name, project["version"], ">=3.11")
    assert told["License-Expression"] == "Apache-2.0" and told.get_all("License-File") == ["LICENSE"]
    assert info(name, "licenses/LICENSE") == (REPO / "LICENSE").read_bytes()
    assert told["Summary"] and told["Description-Content-Type"] == "text/markdown"
    described = told.get_payload(decode=True)
    assert isinstance(described, bytes)
    assert described.decode().strip() == (PROJECTS[name] / "README.md").read_text().strip()
    classifiers = told.get_all("Classifier") or []
    assert ("Typing :: Typed" in classifiers) == (name != "kedit")
    requires = [each.replace(" ", "") for each in told.get_all("Requires-Dist") or []]
    major, minor, *_ = (int(part) for part in project["version"].split("."))
    for other in (each for each in requires if each.startswith("kedit-") and ";" not in each):
        asked = set(re.sub(r"^kedit-[a-z-]+(\[.*\])?", "", other).split(","))
        assert asked == {f">={major}.{minor}", f"<{major}.{minor + 1}"}
    assert name == "kedit-core" or any(each.startswith("kedit-core") for each in requires)


@pytest.mark.parametrize("name", WITH_CODE)
def test_entry_points_lead_to_modules_of_the_wheel(name: str) -> None:
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    with wheel(name) as opened:
        held = set(opened.namelist())
    declared = next((each for each in held if each.endswith(".dist-info/entry_points.txt")), None)
    if declared is None:
        pytest.skip("it has none")
    parser.read_string(info(name, "entry_points.txt").decode())
    for group in parser.sections():
        for value in parser[group].values():
            module = value.partition(":")[0].replace(".", "/")
            assert {f"{module}.py", f"{module}/__init__.py"} & held, value


@pytest.mark.parametrize("name", PROJECTS)
def test_an_sdist_holds_what_building_needs(name: str) -> None:
    with tarfile.open(archive(name, ".tar.gz")) as opened:
        paths = {Path(each.name).relative_to(Path(each.name).parts[0]).as_posix() for each in opened if each.isfile()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= paths
    if name != "kedit":
        assert {f"src/{each}" for each in sources(name)} <= paths
    assert not [each for each in paths if each.startswith(("tests/", "build/", "dist/")) or "__pycache__" in each]


def test_everything_is_part_of_kedit_or_said_not_to_be() -> None:
    """`pip install kedit` brings all; heavy ones may be extras."""
    asked = {re.split(r"[\[<>=;\s]", each)[0] for each in metadata("kedit").get_all("Requires-Dist") or []}
    assert asked >= set(WITH_CODE)
