"""Cards tell what a patch does, and text of others in them is text whatever it holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from plugins.hub.hub_kit import FACT, PLACE, made, module

from kedit_core.contract import MetricResult
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation
from kedit_core.patches import PrivateRequests, Requirement
from kedit_hub.card import Publication, default_title, section
from kedit_hub.markdown import code, literal
from kedit_hub.readme import decoded, has_section, readme
from kedit_hub.results import Results

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://evil.example/track.png) [click](javascript:alert(1))",
    "| a | b |\n| --- | --- |",
    "\n---\nlicense: mit\ntags: [evil]\n---\n# Mine now",
    f"-->\n<!-- kedit:end {'0' * 64} -->\n# Out",
    "`code` **bold** _it_ ~~gone~~ https://evil.example www.evil.example <me@evil.example>",
    "&lt;b&gt; &#60;b&#62; \\| \\",
    "\u202emirror\u202c \x1b[2J \x00 \u2028 tail",
    "# Heading\n- list\n> quote\n```sh\nrm -rf /\n```",
]


def publication(**more: Any) -> Publication:
    patch = more.pop("patch", None) or made()
    return Publication(**{"patch": patch, "title": "A title", "file": "p.safetensors", "pulled": "owner/fact", **more})


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def html(card: str) -> str:
    """The body of a card as a page, without the marks around sections."""
    return rendered("\n".join(line for line in ModelCard(card).text.splitlines() if not line.startswith("<!--")))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_requests_stay_text(text: str) -> None:
    plain = readme(publication())
    fact = {**FACT, "prompt": text, "subject": text, "target_new": text, "ground_truth": text}
    card = readme(publication(patch=made(requests=(fact,))))
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    assert card.count("<!-- kedit:") == 2
    page = html(card)
    for mark in ("<script", "<img", "<a ", "<h1>Out", "<h1>Mine", "<em>", "<strong>", "<b>", "<s>", "<blockquote"):
        assert mark not in page.replace('<a href="https://github.com/huggingface/safetensors">', "")
    assert page.count("<td>") == html(plain).count("<td>") and page.count("<table>") == html(plain).count("<table>")
    assert "\x1b" not in card and "\u202e" not in card and "\u2028" not in card


def test_the_text_itself_is_shown() -> None:
    page = rendered(literal("What is <b>2|3</b> & `x`? 3.5 km. www.a.b"))
    assert page == "<p>What is &lt;b&gt;2|3&lt;/b&gt; &amp; `x`? 3.5 km. www.a.b</p>\n"
    assert rendered(literal("a\n\u202eb\x07")) == "<p>a\\n\\u202eb\\x07</p>\n"
    assert literal("x" * 500).endswith("...") and len(literal("x" * 500)) == 300


@given(st.text(max_size=60))
def test_any_text_is_one_line_of_text(text: str) -> None:
    made_up = literal(text)
    assert "\n" not in made_up and not set("<>[]`*_|\\~@$#") & set(made_up.replace("&#", ""))
    cell = rendered(f"| h |\n| --- |\n| x{made_up} |\n")
    assert cell.count("<td>") == 1 and cell.count("<") == rendered("| h |\n| --- |\n| x |\n").count("<")


def test_hostile_places_and_titles() -> None:
    place = "a|b`<script>`"
    patch = made(operations=(module([place, PLACE]),))
    card = readme(publication(patch=patch, title="<b>Title</b> | x [l](u)"))
    assert "<script" not in html(card) and "<b>" not in html(card) and "&lt;script&gt;" in html(card)
    assert code("a.b-c/d") == "`a.b-c/d`" and "`" not in code("a`b").strip("`")


def test_metadata_names_only_models_of_the_hub() -> None:
    for name, expected in (("org/model", "org/model"), ("gpt2", "gpt2"), ("factworld:llama", None), (None, None)):
        data = ModelCard(readme(publication(patch=made(name=name)))).data
        assert data.base_model == expected
        assert data.to_dict().get("base_model_relation") == (None if expected is None else "adapter")


def test_what_a_card_tells() -> None:
    parent, digest = "12" * 32, "34" * 32
    patch = made(parents=(parent,), requires=(Requirement(role="editor", name="org/editor", sha256=digest),))
    text = section(publication(patch=patch, signature="p.safetensors.sig"))
    for told in (
        *(FACT["prompt"], FACT["target_new"], patch.id, parent, digest, PLACE, "rank 1", "48 x 64", "ab" * 32),
        *("p.safetensors.sig", "LlamaForCausalLM", "kedit-methods-locate", "patch revert", "--base org/model"),
    ):
        assert told in text, told
    many = [{**FACT, "prompt": f"Fact number {i} is"} for i in range(60)]
    text = section(publication(patch=made(requests=many)))
    assert "Fact number 49 is" in text and "Fact number 50 is" not in text and "... and 10 more." in text


def test_facts_can_be_left_out() -> None:
    digest = PrivateRequests.of([FACT]).sha256
    private = made(requests=PrivateRequests.of([FACT]))
    for this in (publication(hide_requests=True), publication(patch=private)):
        text = readme(this)
        assert "Ruritania" not in text and "Strelsau" not in text and digest in text and "1 fact" in text
    assert default_title(private) == "1 fact edited in org/model"


def _evaluation(patch_id: str, **more: Any) -> Evaluation:
    result = MetricResult(
        value=0.775,
        tag="gen_free.question-only.EM.batch.4+merged",
        cases={"a": 1.0, "b": 0.55},
        parts={"near": 0.5},
        case_parts={"near": {"a": 0.5}},
    )
    return Evaluation(metrics={"gen_free.locality": result, **more}, manifest={"patches": [patch_id]})


def _rows(path: Path, patch_id: str) -> list[tuple[str, ...]]:
    return [(row.metric, row.value, row.cases, row.tag) for row in Results.read(path, patch_id).rows]


def test_results_of_evaluate_and_of_edit(tmp_path: Path) -> None:
    patch, path = made(), tmp_path / "results.json"
    tag = "gen_free.question-only.EM.batch.4+merged"
    expected = [("gen_free.locality", "77.5 %", "2", tag), ("gen_free.locality: near", "50.0 %", "1", tag)]
    path.write_text(_evaluation(patch.id).to_json())
    assert _rows(path, patch.id) == expected
    # rounds of one edit are parts of it, not other patches
    rounds = _evaluation(patch.id).to_dict()
    rounds["manifest"]["patches"] = ["1" * 64, "2" * 64]
    path.write_text(json.dumps({"patch": patch.id, "patches": ["1" * 64, "2" * 64], "evaluation": rounds}))
    assert _rows(path, patch.id) == expected and Results.read(path, patch.id).others == 0
    rounds["manifest"]["patches"] = [patch.id, "2" * 64]
    path.write_text(json.dumps(rounds))
    results = Results.read(path, patch.id)
    text = section(publication(results=results))
    assert results.others == 1 and "Measured with 1 other patch on the model" in text
    assert f"| `gen_free.locality` | 77.5 % | 2 | `{tag}` |" in text


def test_results_that_are_not_of_this_patch(tmp_path: Path) -> None:
    patch, path = made(), tmp_path / "results.json"
    hostile = MetricResult(value=1.0, tag="<img src=x>", cases={}, unit="`|x|`")
    path.write_text(_evaluation(patch.id, **{"</td>": hostile}).to_json())
    page = html(readme(publication(results=Results.read(path, patch.id))))
    assert "<img" not in page and "&lt;/td&gt;" in page
    for content, message in (
        (_evaluation("1" * 64).to_json(), "it is about 111111111111, not about"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ('{"evaluation": null, "patch": null}', "not an evaluation"),
        ('{"format": 1, "metrics": {"m": 1}, "manifest": {}}', "cannot be read"),
        ('{"format": 1, "metrics": {}, "manifest": 3}', "results of this patch"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            Results.read(path, patch.id)


def test_sections_are_found_in_linear_time() -> None:
    begin = f"<!-- kedit:patch {publication().patch.id} -->\n"
    started = time.perf_counter()
    for old in (begin * 40_000, begin * 40_000 + begin.replace("patch", "end").rstrip() + " \n"):  # never ended
        assert not has_section(old, publication().patch.id)
    assert time.perf_counter() - started < 5  # it was minutes
    old = f"# Mine\n{begin}old\n{begin.replace('patch', 'end')}more of mine\n"
    new = readme(publication(), old)
    assert new.count(begin) == 1 and "\nold\n" not in new and new.endswith("more of mine\n")


def test_a_readme_that_cannot_be_read_is_left_alone() -> None:
    bomb = "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
    for old in (
        "---\n{a: [\n---\n",
        "---\n- a list\n---\n",
        f"---\n{bomb}tags: *a11\n---\n",
        f"---\n{bomb}base_model: [*a11]\n---\n",
        '---\na: "\\UFFFFFFFF"\n---\n',
        f"---\na: 1{':59' * 5000}\n---\n",
    ):
        with pytest.raises(InputError, match=r"the repository's README\.md cannot be read"):
            readme(publication(), old)
    with pytest.raises(InputError, match="UnicodeDecodeError"):
        decoded(b"\xff")
    for old in ("# Only words\n", "", "\n"):
        card = ModelCard(readme(publication(), old))
        assert card.data.library_name == "kedit" and ("# Only words" in card.text) == bool(old.strip())
