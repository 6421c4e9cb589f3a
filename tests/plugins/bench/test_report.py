"""The report: one file that fetches nothing, in which foreign text stays text, and whose marks can be trusted."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_made_up import HOSTILE, METHODS, SCENARIOS, made_up_bench

from kedit_bench.report import read_bench, report, write_report
from kedit_bench.report.comparable import groups_of, marks
from kedit_bench.report.facts import facts_of
from kedit_bench.report.worst import PROBES, cases_shown, worst_cases
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation, metric_result

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "br", "hr", "input", "col"}


class Page(HTMLParser):
    """A page as a list of elements: name, attributes, text below it, names of its parents. All must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str], tuple[str, ...]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[self.elements[index][0] for index in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        parents = tuple(self.elements[index][0] for index in self.open)
        self.elements.append((tag, dict(attrs), [], parents))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.elements[self.open[-1]][0] == tag, f"</{tag}> closes nothing"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        """Elements of a name whose attributes hold these words: (attributes, text)."""
        return [
            (attrs, "".join(text))
            for name, attrs, text, _ in self.elements
            if name == tag
            and all(
                word in (attrs.get(key.rstrip("_").replace("_", "-")) or "").split() for key, word in attributes.items()
            )
        ]

    def one(self, tag: str, **attributes: str) -> str:
        """The text of the only such element."""
        ((_, text),) = self.all(tag, **attributes)
        return text


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(made_up_bench()))
    return made


@pytest.fixture(scope="module")
def text(bench: dict[str, Any]) -> str:
    return report(bench)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def one_group(**options: Any) -> dict[str, Any]:
    return made_up_bench(models=("m",), **{"scenarios": SCENARIOS[:1], "cases": 12, "failing": (), **options})


def set_values(bench: Mapping[str, Any], name: str, values: Mapping[str, float]) -> None:
    """Give a metric of each method a value (by one case)."""
    for cell in bench["cells"]:
        old = cell["evaluation"]["metrics"][name]
        result = metric_result({"case-0": values[cell["label"]]}, tag=old["tag"], unit=old["unit"])
        cell["evaluation"]["metrics"][name] = Evaluation(metrics={name: result}).to_dict()["metrics"][name]


# what a browser would do with it


def test_nothing_is_fetched_from_anywhere(text: str, page: Page) -> None:
    for name, attrs, _, _ in page.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:")), f"{name} {key}={value}"
        assert name not in ("iframe", "object", "embed", "base", "form", "img")
    style = page.one("style")
    assert "url(" not in style and "@import" not in style


def test_policy_lets_only_this_style_and_this_script_run(page: Page) -> None:
    (policy,) = [
        attrs["content"] for attrs, _ in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(page.one(tag).encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert not [
        name for name, attrs, _, _ in page.elements if "style" in attrs or any(key.startswith("on") for key in attrs)
    ]


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs, _, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for attrs, _ in page.all("a")}
    assert targets and targets <= {f"#{each}" for each in ids}


def test_hostile_text_stays_text(text: str, page: Page) -> None:
    assert len(page.all("script")) == 1
    cells = [said for _, said in page.all("td")] + [said for _, said in page.all("bdi")]
    assert any('</script><script>alert("1")</script>' in said for said in cells)
    assert any("onerror=alert(1)" in said for said in cells)
    assert "\x00" not in text and "␀" in text
    assert text.encode("utf-8")  # half surrogates are gone
    assert "\u202e" not in re.sub(r"<bdi>[^<]*</bdi>", "", text)  # what turns direction is shut in


def test_long_texts_are_cut_and_the_rest_is_counted(text: str) -> None:
    assert "long " * 40 not in text
    assert re.search(r"… \+\d,\d\d\d characters", text)


def test_markup_in_names_of_cells_is_escaped_too() -> None:
    hostile = "<b>x</b>\"'><script>"
    bench = one_group(methods={hostile: 0.5, "rome": 0.6})
    for cell in bench["cells"]:
        cell["model"] = cell["dataset"] = hostile
        cell["warnings"] = [{"code": hostile, "message": hostile, "count": 1}]
        cell["updates"][0]["place"] = hostile
        cell["evaluation"]["metrics"][hostile] = cell["evaluation"]["metrics"]["gen_free.locality"]
    page = Page(report(bench))
    assert len(page.all("script")) == 1 and not [said for _, said in page.all("b") if said == "x"]


# tables


def test_each_place_has_a_table_with_a_row_a_method(page: Page, bench: dict[str, Any]) -> None:
    groups = page.all("section", class_="group")
    assert len(groups) == 6
    places = {(attrs["data-model"], attrs["data-dataset"], attrs["data-scenario"]) for attrs, _ in groups}
    assert ("factworld:gpt2", "factworld", "sequence of 100, 1 a round") in places
    for _, said in groups:
        assert all(method in said for method in METHODS)


def test_table_semantics(page: Page) -> None:
    heads = [attrs for name, attrs, _, _ in page.elements if name == "th"]
    assert heads and all(attrs.get("scope") in ("row", "col", "colgroup") for attrs in heads)
    images = [attrs for name, attrs, _, _ in page.elements if name == "svg"]
    assert all(attrs.get("aria-hidden") == "true" or attrs.get("aria-label") or attrs.get("role") == "img"
               or attrs.get("viewbox") for attrs in images)  # fmt: skip
    assert all(
        attrs.get("tabindex") == "0" and attrs.get("aria-label") for attrs, _ in page.all("div", class_="scroll")
    )


@pytest.mark.parametrize(("name", "best", "worst"), [("gen_free.locality", "c", "a"), ("efficiency.seconds", "a", "c")])
def test_best_and_worst_follow_the_direction_of_the_metric(name: str, best: str, worst: str) -> None:
    bench = one_group(methods=dict.fromkeys("abc", 0.5))
    set_values(bench, name, {"a": 0.25, "b": 0.5, "c": 0.75})
    ((table,),) = [group.tables for group in groups_of(read_bench(bench))]
    found = dict(zip("abc", marks(table.values(name), table.metrics[name].facts), strict=True))
    assert found == {best: "best", worst: "worst", "b": None}


def test_time_is_told_apart_into_editing_and_evaluating() -> None:
    bench = one_group()
    for cell in bench["cells"]:
        cell["seconds"] = {"load": 1.0, "base": 2.0, "edit": 600.0, "evaluate": 6.0, "total": 609.0}
    count = len(bench["cells"])
    (tiles,) = [said for _, said in Page(report(bench)).all("ul", class_="tiles")]
    assert f"{10 * count} min editing" in tiles and f"{6 * count} s evaluating" in tiles


def test_marks_by_what_is_shown_and_none_without_a_difference() -> None:
    share = facts_of("gen_free.locality", "share", {})
    assert marks([0.90004, 0.90001, 0.5, None], share) == ["best", "best", "worst", None]
    assert marks([0.9, 0.9], share) == [None, None]
    assert marks([0.9], share) == [None]
    assert marks([None, None], share) == [None, None]
    assert marks([1.0, 2.0], facts_of("mine.thing", "furlongs", {})) == [None, None]
    told = {"mine.thing": {"better": "lower", "summary": "how far"}}
    assert marks([1.0, 2.0], facts_of("mine.thing", "furlongs", told)) == ["best", "worst"]


def test_gap_is_teacher_forced_less_free() -> None:
    bench = one_group(methods={"rome": 0.5, "memit": 0.5})
    set_values(bench, "gen_free.reliability", {"rome": 0.25, "memit": 0.5})
    set_values(bench, "tf_token.reliability", {"rome": 0.75, "memit": 0.375})
    page = Page(report(bench))
    assert [said for _, said in page.all("td", class_="gap")][::4] == ["+50.0", "−12.5"]


def test_different_tags_never_share_a_table() -> None:
    bench = one_group(ways={"grace": "attached", "memit": "attached"})
    (group,) = groups_of(read_bench(bench))
    assert [[cell.label for cell in table.cells] for table in group.tables] == [
        ["rome", "ft_l", "alphaedit"],
        ["memit", "grace"],
    ]
    for table in group.tables:
        for name, metric in table.metrics.items():
            assert {cell.evaluation[name].tag for cell in table.cells} == {metric.tag}
    assert "stand in tables of their own" in report(bench)


def test_a_cell_without_a_metric_stays_in_the_table() -> None:
    bench = one_group()
    del bench["cells"][1]["evaluation"]["metrics"]["gen_free.portability"]
    (group,) = groups_of(read_bench(bench))
    assert len(group.tables) == 1 and group.tables[0].values("gen_free.portability")[1] is None


def test_failed_cells_are_shown_with_their_error(page: Page) -> None:
    (said,) = [said for attrs, said in page.all("ul", class_="failures")]
    assert "ft_l failed: MethodError: <b>the loss is not a number</b> in case 3" in said
    assert [said for _, said in page.all("li", class_="bad")] == ["1 cell failed"]


def test_sources_of_a_mix_have_tables_of_their_own() -> None:
    bench = one_group(methods={"rome": 0.5, "memit": 0.7})
    for cell, value in zip(bench["cells"], (0.125, 0.875), strict=True):
        cell["by_source"] = {"zsre": {"gen_free.reliability": value}, "counterfact": {"gen_free.locality": 0.5}}
        for name, result in cell["evaluation"]["metrics"].items():
            if not name.startswith("efficiency"):
                result["value"], result["parts"] = None, {}
    page = Page(report(bench))
    captions = [said for _, said in page.all("caption")]
    assert captions.count("Cases of zsre") == captions.count("Cases of counterfact") == 1
    assert [said for _, said in page.all("td", class_="best") if said.endswith("%")] == ["▲ best87.5 %"]


# charts


def test_retention_charts_of_sequences_only() -> None:
    sequence = report(one_group(scenarios=SCENARIOS[2:], cases=100))
    for title in ("Reliability after so many edits", "Reliability, at once and at the end", "Locality by age"):
        assert title in sequence and title not in report(one_group())


def test_curve_points_and_numbers_are_those_of_the_checkpoints() -> None:
    bench = one_group(scenarios=SCENARIOS[2:], methods={"rome": 0.5})
    (cell,) = bench["cells"]
    for checkpoint, value in zip(cell["checkpoints"], (1.0, 0.75, 0.5, 0.25), strict=True):
        checkpoint["evaluation"]["metrics"]["gen_free.reliability"]["value"] = value
    page = Page(report(bench))
    (figure,) = [said for _, said in page.all("figure") if "Reliability after so many edits" in said]
    assert figure.endswith("Method11050100rome100.0 %75.0 %50.0 %25.0 %")
    line = next(index for index, (name, attrs, *_) in enumerate(page.elements) if attrs.get("class") == "lines")
    dots = [attrs for name, attrs, _, _ in page.elements[line : line + 60] if name == "circle"][:4]
    assert [(dot["cx"], dot["cy"]) for dot in dots] == [
        ("0%", "0%"), ("50%", "25%"), ("84.95%", "50%"), ("100%", "75%"),
    ]  # fmt: skip


def test_error_classes_add_up_and_unchanged_is_taken_out_of_irrelevant() -> None:
    bench = one_group(methods={"rome": 0.5})
    counts = {"meaningless": 1.0, "partial": 0.0, "missing": 2.0, "irrelevant": 5.0, "unchanged": 4.0}
    result = metric_result(
        {"case-0": 8.0}, tag=bench["cells"][0]["evaluation"]["metrics"]["errors.count"]["tag"],
        case_parts={name: {"case-0": count} for name, count in counts.items()}, unit="outputs", statistics=("total",),
    )  # fmt: skip
    bench["cells"][0]["evaluation"]["metrics"]["errors.count"] = Evaluation(metrics={"x": result}).to_dict()["metrics"][
        "x"
    ]
    page = Page(report(bench))
    (figure,) = [said for _, said in page.all("figure") if "all wrong answers" in said]
    assert "8 wrong" in figure and figure.endswith("rome10214")
    widths = [attrs["width"] for attrs, _ in page.all("rect") if (attrs.get("class") or "").startswith("e-")]
    assert widths[:4] == ["12.5%", "25%", "12.5%", "50%"]


def test_update_sizes_ignore_what_a_logarithm_cannot_show() -> None:
    bench = one_group(methods={"rome": 0.5, "grace": 0.5})
    sizes = [0.01, 0.1, 1.0, 0.0, None]
    bench["cells"][0]["updates"] = [
        {"case": "c", "place": "w", "norm": 1.0, "relative": size, "rank": rank} for rank, size in enumerate(sizes, 1)
    ]
    bench["cells"][1]["updates"] = []
    page = Page(report(bench))
    (figure,) = [said for _, said in page.all("figure") if "‖ΔW‖" in said]
    assert "median 0.1" in figure and "grace" not in figure
    assert figure.endswith("romew50.10.0111–5")


# worst cases


def the_table(bench: Mapping[str, Any]) -> Any:
    ((table,),) = [group.tables for group in groups_of(read_bench(bench))]
    return table


def test_worst_cases_are_those_with_the_lowest_mean_score() -> None:
    bench = made_up_bench(models=("m",), scenarios=SCENARIOS[:1], cases=60, failing=())
    found = worst_cases(the_table(bench))
    means: dict[str, list[float]] = {}
    for cell in bench["cells"]:
        metrics = cell["evaluation"]["metrics"]
        for case in metrics["gen_free.reliability"]["cases"]:
            scores = [
                metrics[f"gen_free.{m}"]["cases"][case]
                for m in ("reliability", "generalization", "locality", "portability")
            ]
            means.setdefault(case, []).append(sum(scores) / 4)
    ranked = sorted(sum(each) / len(each) for each in means.values())
    assert len(found) == 20
    assert [bad.score for bad in found] == pytest.approx(ranked[:20])
    assert all(bad.score == pytest.approx(sum(means[bad.case]) / 5) for bad in found)


def test_faultless_cases_are_not_among_the_worst() -> None:
    bench = one_group(methods={"rome": 2.0})
    for metric in bench["cells"][0]["evaluation"]["metrics"].values():
        metric["cases"] = dict.fromkeys(metric["cases"], 1.0)
        for output in metric["outputs"]:
            output["score"] = 1.0
    assert worst_cases(the_table(bench)) == []
    assert not Page(report(bench)).all("ol", class_="cases-list")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(PROBES + 1, "and 1 more probe that did not come out right"), (PROBES + 3, "and 3 more probes that did not")],
)
def test_one_of_a_kind_is_told_as_one(wrong: int, said: str) -> None:
    bench = one_group(methods={"rome": 0.5}, cases=1)
    for name, metric in bench["cells"][0]["evaluation"]["metrics"].items():
        metric["outputs"] = []
        if name.startswith("gen_free"):
            metric["cases"] = {"case-0": 0.0}
    output = {"case": "case-0", "kind": "reliability", "expected": ["Oslo"], "score": 0.0}
    first = bench["cells"][0]["evaluation"]["metrics"]["gen_free.reliability"]
    first["outputs"] = [{**output, "prompt": f"prompt {number}"} for number in range(wrong)]
    page = Page(report(bench))
    assert "The worst case" in [said for _, said in page.all("h3")]
    assert said in " ".join(text for _, text in page.all("p", class_="note"))


def test_worst_cases_show_texts_before_and_after() -> None:
    bench = one_group(methods={"rome": 0.5, "memit": 0.5}, cases=1)
    for cell, said in zip(bench["cells"], ("Oslo, of course", "Bergen"), strict=True):
        for name, metric in cell["evaluation"]["metrics"].items():
            if name.startswith("gen_free"):
                metric["cases"] = {"case-0": 0.0}
            for output in metric["outputs"]:
                output |= {"prompt": "The capital is", "base": "Paris", "edited": said, "score": 0.0}
    page = Page(report(bench))
    (case,) = [said for _, said in page.all("ol", class_="cases-list")]
    assert case.startswith("The capital is → City 0case case-0")
    assert "expectedCity 0 / 0ville" in case and "beforeParis" in case
    assert "after romeOslo, of coursewrong" in case and "after memitBergenwrong" in case
    assert "localityneighborhood" not in case and "expectedas before" in case


def test_many_tables_show_fewer_cases() -> None:
    assert [cases_shown(tables) for tables in (1, 8, 16, 1000)] == [20, 20, 10, 4]


# the rest


def test_manifest_spec_and_settings_are_there(page: Page) -> None:
    body = page.one("main")
    for said in (
        "versions.torch",
        "2.13.0",
        "started",
        '"seed": 0',
        "v_lr",
        "preset factworld-llama",
        "General ability by lm_eval 0.4.13",
        "lambada_openaiacc0.51 ± 0.010.53 ± 0.01-0.025153",
    ):
        assert said in body


def test_every_heading_of_a_metric_is_explained_once(page: Page) -> None:
    explained = [attrs["data-explains"] for _, attrs, _, _ in page.elements if "data-explains" in attrs]
    assert len(explained) == len(set(explained))
    asked = {attrs["data-metric"] for attrs, _ in page.all("button", class_="sort")}
    assert asked <= set(explained)
    said = {attrs["data-explains"]: text for attrs, text in page.all("dd") if "data-explains" in attrs}
    assert said["gen_free.locality"].startswith("Unrelated prompts are answered as by the unedited model")
    assert said["efficiency.seconds"].endswith("Lower is better.")


def test_size_of_a_big_bench(tmp_path: Path) -> None:
    methods = {f"method-{index}": 0.4 + index / 10 for index in range(5)}
    bench = made_up_bench(models=("a", "b"), datasets=("x", "y"), methods=methods, cases=100)
    assert len(bench["cells"]) == 60
    write_report(bench, tmp_path / "report.html")
    assert 200_000 < (tmp_path / "report.html").stat().st_size < 2_000_000


def test_same_bench_same_bytes(bench: dict[str, Any], text: str) -> None:
    assert report(bench) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda bench: bench.update(kind="other"), "not a bench of format 1"),
        (lambda bench: bench.update(format=2), "not a bench of format 1"),
        (lambda bench: bench.update(cells=None), 'no list "cells"'),
        (lambda bench: bench["cells"][2].pop("model"), "cell 3 .*'model' is missing"),
        (lambda bench: bench["cells"][0].update(evaluation={"format": 9}), "cell 1 .*not an evaluation of format 1"),
        (lambda bench: bench["cells"][0].update(seconds={"edit": "soon"}), "cell 1 .*soon"),
    ],
)
def test_what_is_no_bench_is_refused(change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path) -> None:
    bench = one_group()
    change(bench)
    with pytest.raises(InputError, match=said):
        write_report(bench, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def bare_benches() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "no cells", {**one_group(), "cells": []}
    failed = one_group(failing=())
    for cell in failed["cells"]:
        cell |= {"status": "failed", "error": None, "evaluation": None, "updates": [], "seconds": {}}
    yield "all failed", failed
    empty = one_group()
    for cell in empty["cells"]:
        cell["evaluation"]["metrics"] = {}
        cell["updates"] = []
    yield "no metrics", empty
    blank = one_group(methods={"rome": 0.5})
    blank["spec"], blank["manifest"] = {}, {}
    del blank["cells"][0]["hparams"], blank["cells"][0]["checkpoints"]
    yield "nothing optional", blank


@pytest.mark.parametrize("bare", [bench for _, bench in bare_benches()], ids=[name for name, _ in bare_benches()])
def test_bare_benches_make_whole_pages(bare: dict[str, Any]) -> None:
    assert Page(report(bare)).one("h1") == "Knowledge editing benchmark"


def test_two_cells_of_one_name_are_told_apart() -> None:
    bench = one_group(methods={"rome": 0.5})
    bench["cells"].append({**bench["cells"][0], "id": "other"})
    assert [cell.label for cell in read_bench(bench).cells] == ["rome", "rome #2"]


def test_hostile_strings_reach_the_page() -> None:
    """The bench of these tests really carries them; else the tests above would prove nothing."""
    carried = json.dumps(made_up_bench(), ensure_ascii=True)
    assert all(json.dumps(each, ensure_ascii=True)[1:-1] in carried for each in HOSTILE)
