"""What the site makes from the code: a page for every method, its settings, presets, results; links and lists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import attrs
import pytest

from kedit_core.cli.edit import edit
from kedit_core.contract import SCENARIOS
from kedit_core.hparams import HyperParams, load_presets
from kedit_core.plugins import METHODS, Catalogue
from site_parts.about import about_table
from site_parts.commands import command_reference
from site_parts.docstrings import descriptions
from site_parts.elsewhere import Elsewhere
from site_parts.lists import respace
from site_parts.markers import MARKER, OF_METHOD, PLAIN, fill, training_class
from site_parts.results import results_table
from site_parts.settings import settings_table, shown_type
from site_parts.text import code, markdown, table

REPO = Path(__file__).parents[2]
METHOD_PAGES = REPO / "docs" / "methods"
OURS = {
    "kedit-methods-locate",
    "kedit-methods-memory",
    "kedit-methods-meta",
    "kedit-methods-finetune",
}
CATALOGUE = Catalogue.installed()
SHIPPED = {name: info for name, info in CATALOGUE.methods().items() if CATALOGUE.distribution_of(METHODS, name) in OURS}
each_method = pytest.mark.parametrize("name", sorted(SHIPPED))


def test_every_method_that_is_shipped_has_a_page_and_every_page_a_method() -> None:
    assert {page.stem for page in METHOD_PAGES.glob("*.md")} == {*SHIPPED, "index"}
    listed = re.findall(r"methods/(\w+)\.md", (REPO / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted([*SHIPPED, "index"])


@each_method
def test_a_method_page_says_where_it_is_from_and_has_all_its_tables(name: str) -> None:
    text = (METHOD_PAGES / f"{name}.md").read_text()
    info = SHIPPED[name]
    assert re.search(r"\d{4}", text.partition("<!-- about")[0])  # a year
    wanted = {"about", "settings", "results"}
    wanted |= {"training-settings", "training-presets"} if info.training else {"presets"}
    assert {found["name"] for found in MARKER.finditer(text)} == wanted
    assert {found["method"] for found in MARKER.finditer(text)} == {name}
    assert f'method="{name}"' in text and f'"{name}"' in text  # an example that runs (test_docs)


def test_names_that_share_a_description_are_one_entry_of_the_reference() -> None:
    griffe = pytest.importorskip("griffe", reason="needs mkdocstrings: pip install 'kedit[docs]'")
    from site_parts.roles import together

    docstring = griffe.Docstring(together("It.\n\nAttributes:\n    model, tokenizer: as given.\n    seed: a number."))
    (_, section) = docstring.parse("google", warnings=False)
    assert [each.name.split() for each in section.value] == [["model,", "tokenizer"], ["seed"]]
    assert [each.annotation for each in section.value] == [None, None]


@each_method
def test_options_are_told_as_they_can_be_given(name: str) -> None:
    told = about_table(SHIPPED[name], "kedit-x")
    offered = {option for parameter in edit.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", told.partition("| options |")[2])) <= offered
    for option in set(SHIPPED[name].options) - set(SHIPPED[name].resources):
        assert f"--{option}" in told or f"options={{'{option}'" in told


@each_method
def test_the_comparison_says_of_a_method_what_its_description_says(name: str) -> None:
    info = SHIPPED[name]
    (row,) = re.findall(rf"^\| \[`{name}`\].*$", (METHOD_PAGES / "index.md").read_text(), re.MULTILINE)
    _, _, writes, needs, scenarios, _, _ = (cell.strip() for cell in row.split("|"))
    assert scenarios == ", ".join(each for each in SCENARIOS if each in info.scenarios)
    words = {"low_rank_delta": "low-rank", "dense_delta": "dense", "sparse_delta": "sparse"}
    assert all(words.get(kind, kind) in writes for kind in info.operations)
    assert ("subject" in needs) == info.needs_subject
    assert ("trained editor" in needs) == (info.training is not None)


@each_method
def test_every_setting_is_described_with_its_type_and_default(name: str) -> None:
    info = SHIPPED[name]
    for cls in [CATALOGUE.hparams_class(info), *([training_class(info)] if info.training else [])]:
        rows = [line.split(" | ") for line in settings_table(cls).splitlines()[2:]]
        fields = [field for field in attrs.fields(cls) if field.init]
        of_name = {field.name: field for field in fields}
        names = [row[0].strip("|` ") for row in rows]
        assert sorted(names) == sorted(of_name)
        assert names == [name for name in descriptions(cls) if name in of_name]  # the method's own come first
        for row, field in zip(rows, map(of_name.__getitem__, names), strict=True):
            assert row[1].strip() and len(row[-1].strip("| ")) > 5, row
            if isinstance(field.default, bool | int | float | str):
                assert row[2].startswith(f"`{json.dumps(field.default)}`")


@each_method
def test_presets_and_results_are_all_there(name: str) -> None:
    info = SHIPPED[name]
    folder = info.training_presets if info.training else info.presets
    key = "training-presets" if info.training else "presets"
    shown = OF_METHOD[key](CATALOGUE, info, REPO)
    presets = load_presets(folder) if folder else []
    assert presets and all(f"| {preset.name} |" in shown for preset in presets)
    rows = [json.loads(file.read_text()) for file in (REPO / "benchmarks/results").glob(f"*.{name}.*.json")]
    table_rows = results_table(REPO, name).splitlines()[2:]
    assert len(table_rows) == len(rows)
    for row in rows:
        reliability = f"{row['figures']['gen_free.reliability']['value']:.3f}"
        model = row["settings"]["model"].removeprefix("factworld:")
        assert any(f"| {model} | {reliability} |" in line for line in table_rows)


def test_every_marker_of_every_page_is_one_that_can_be_filled() -> None:
    seen = set()
    for page in (REPO / "docs").rglob("*.md"):
        for comment in re.findall(r"^<!-- .* -->$", page.read_text(), re.MULTILINE):
            found = MARKER.fullmatch(comment)
            assert found is not None, f"{page}: {comment}"
            assert found["name"] in (OF_METHOD if found["method"] else PLAIN), f"{page}: {comment}"
            seen.add(found["name"])
    assert seen == {*OF_METHOD, *PLAIN}
    assert "<!--" not in fill((METHOD_PAGES / "malmen.md").read_text(), REPO)


def test_a_marker_that_nobody_knows_is_left_as_it_is_and_an_unknown_method_is_an_error() -> None:
    assert fill("<!-- weather -->", REPO) == "<!-- weather -->"
    with pytest.raises(Exception, match="nonesuch"):
        fill("<!-- settings: nonesuch -->", REPO)


def test_the_command_line_is_told_with_every_command_and_option() -> None:
    text = command_reference()
    for command in ("edit", "train", "patch show", "patch revert", "plugins"):
        assert re.search(rf"^#+ kedit {command}$", text, re.MULTILINE)
    assert "`-m, --method TEXT`" in text and "`--way [merged|attached]`" in text
    assert "\b" not in text


@attrs.frozen(kw_only=True)
class Parent(HyperParams):
    """Settings of nothing.

    Attributes:
        first: one thing. second: another, which takes
            two lines.
        third, fourth: both, with ``None`` for none.

    More of it.
    """

    first: int = 1
    second: float | None = None
    third: tuple[int, ...] = ()
    fourth: tuple[tuple[int, str], ...] = ()


@attrs.frozen(kw_only=True)
class Child(Parent):
    """Others.

    Attributes:
        second: the child's own.
        way: see :class:`Parent`.
    """

    way: Literal["a", "b"] = "a"


@attrs.frozen(kw_only=True)
class Silent(Child):
    """Says nothing of what it adds."""

    fifth: bool = True


def test_descriptions_come_from_the_nearest_class_that_has_them() -> None:
    assert descriptions(Child) == {
        "first": "one thing.",
        "second": "the child's own.",
        "third": "both, with ``None`` for none.",
        "fourth": "both, with ``None`` for none.",
        "way": "see :class:`Parent`.",
    }
    assert descriptions(Parent)["second"] == "another, which takes two lines."
    assert "both, with `null` for none." in settings_table(Child)
    with pytest.raises(ValueError, match="Silent does not describe fifth"):
        settings_table(Silent)


def test_types_are_told_in_the_words_of_a_settings_file() -> None:
    assert shown_type(float | None) == "number, or null"
    assert shown_type(tuple[int, ...] | None) == "list of whole numbers, or null"
    assert shown_type(tuple[tuple[int, str], ...]) == "list of [whole number, text]"
    assert shown_type(Literal["a", "b"]) == "`a`, `b`"
    assert shown_type(bool | str) == "true or false or text"


def test_bars_are_escaped_in_cells_but_not_in_code() -> None:
    assert table(["a"], [["|x| and `|y|`\nmore"]]).splitlines()[2] == r"| \|x\| and `|y|` more |"
    assert code("a`b") == "``a`b``" and code("`") == "`` ` ``"
    assert markdown("``a`` of :meth:`~kedit_core.Editor.edit`") == "`a` of `kedit_core.Editor.edit`"


def test_links_of_the_repository_lead_to_pages_of_the_site() -> None:
    site = Elsewhere(REPO)
    assert site.packages()["kedit-methods-locate"] == "packages/kedit-methods-locate.md"
    assert site.links("[a](../../kedit_methods_meta/README.md#results)", "methods/mend.md") == (
        "[a](../packages/kedit-methods-meta.md#results)"
    )
    back = site.links(
        "[t](../docs/training.md) [r](../README.md) [x](#y) [w](https://w/a.md)", "packages/kedit-core.md"
    )
    assert back == "[t](../training.md) [r](../index.md) [x](#y) [w](https://w/a.md)"
    fenced = "[a](../CHANGELOG.md)\n```text\n[a](../CHANGELOG.md)\n```\n[a](../CHANGELOG.md)"
    assert site.links(fenced, "index.md").split("\n") == [
        "[a](changelog.md)",
        "```text",
        "[a](../CHANGELOG.md)",
        "```",
        "[a](changelog.md)",
    ]
    assert site.links("[a](../nowhere.py)", "index.md") == "[a](../nowhere.py)"  # mkdocs warns of it


def test_lists_are_written_as_python_markdown_reads_them() -> None:
    github = """\
Text:
- one
  goes on
  - inner

  | a | b |
  | --- | --- |
- two

  ```sh
  if x
    y
  ```

It was in
2019. So it goes on.
1. first
   more
2. second
"""
    ours = """\
Text:

-   one
    goes on
    -   inner

    | a | b |
    | --- | --- |
-   two

    ```sh
    if x
      y
    ```

It was in
2019. So it goes on.

1.  first
    more
2.  second
"""
    assert respace(github) == ours
    assert respace(ours) == ours
