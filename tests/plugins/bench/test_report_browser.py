"""The pages in a headless Chromium, where there is one: no errors, nothing fetched, and what can be clicked works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_made_up import made_up_bench

from kedit_bench.compare import compare
from kedit_bench.report import write_report
from kedit_bench.report.comparison import write_comparison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH"),
    pytest.mark.skipif(os.name == "nt", reason="pipes are handed to the browser as POSIX does it"),
]


class Tab:
    """A page in a browser that is spoken to over a pipe (the DevTools protocol, messages that end in a zero byte)."""

    def __init__(self, profile: Path) -> None:
        self.to_browser, from_us = os.pipe()
        to_us, self.from_browser = os.pipe()
        self.write_end, self.read_end = from_us, to_us
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        shell = 'exec 3<&$0 4>&$1; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell.replace("$0", str(self.to_browser)).replace("$1", str(self.from_browser)), "_",
             str(BROWSER), *options, f"--user-data-dir={profile}"],
            pass_fds=(self.to_browser, self.from_browser),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(self.to_browser)
        os.close(self.from_browser)
        self.buffer, self.count, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.read_end, 1 << 20)
            assert more, "the browser is gone"
            self.buffer += more
        whole, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(whole)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        value = "dark" if dark else "light"
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def run(self, script: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=f"(() => {{ {script} }})()", returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[Any]:
        """What the console said, and what was fetched beside the page itself."""
        said = [
            e
            for e in self.events
            if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ]
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return said + [url for url in urls[1:] if not url.startswith("data:")]

    def close(self) -> None:
        self.ask("Browser.close")
        os.close(self.write_end)
        self.process.wait(20)
        os.close(self.read_end)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    tab = Tab(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    a, b = made_up_bench(), made_up_bench(seed=1)
    write_report(a, folder / "report.html")
    write_comparison(compare(a, b, samples=200), folder / "comparison.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_load_without_complaint_and_fit_the_window(
    tab: Tab, pages: dict[str, Path], name: str, dark: bool, width: int
) -> None:
    tab.open(pages[name], width=width, dark=dark)
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert tab.run("return document.documentElement.classList.contains('js')")
    assert tab.run("return document.documentElement.scrollWidth") <= width
    assert tab.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_from_their_ground(tab: Tab, pages: dict[str, Path], dark: bool) -> None:
    """WCAG AA: 4.5 to 1 for texts, on the nearest ground that is painted."""
    tab.open(pages["report"], dark=dark)
    worst = tab.run("""
        for (const part of document.querySelectorAll('details')) part.open = true;
        const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (part) => {
            for (let at = part; at; at = at.parentElement) {
                const color = numbers(getComputedStyle(at).backgroundColor);
                if (color.length === 3 || color[3] > 0.99) return color;
            }
            return [255, 255, 255];
        };
        let least = [99, ''];
        for (const part of document.querySelectorAll('body *:not(script)')) {
            const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
            if (!own || part.closest('.unseen, .skip, svg, #bubble, option')) continue;
            const [a, b] = [light(numbers(getComputedStyle(part).color)), light(ground(part))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < least[0]) least = [ratio, part.outerHTML.slice(0, 120)];
        }
        return least;""")
    assert 4.5 <= worst[0] < 22, worst


def test_filters_hide_what_was_not_chosen(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"])
    choose = (
        "const by = document.querySelector('[data-filter=%s]'); by.value = '%s'; by.dispatchEvent(new Event('change'));"
    )
    shown = (
        "return [...document.querySelectorAll('section.group')].filter((each) => !each.hidden).map((each) => each.id)"
    )
    assert len(tab.run(shown)) == 6
    tab.run(choose % ("model", "factworld:gpt2"))
    assert tab.run(shown) == ["group-4", "group-5", "group-6"]
    tab.run(choose % ("scenario", "single"))
    assert tab.run(shown) == ["group-4"]
    columns = "return [...document.querySelectorAll('.overview thead th')].filter((each) => !each.hidden).length"
    assert tab.run(columns) == 2
    tab.run(
        choose % ("model", "") + choose.replace("const by", "const other").replace("by.", "other.") % ("scenario", "")
    )
    assert len(tab.run(shown)) == 6


def test_headings_sort_and_explain(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"])
    column = """const table = document.querySelector('#group-1 table');
        const button = [...table.querySelectorAll('button.sort')].find((each) => each.dataset.metric === '%s');
        const at = [...table.querySelectorAll('thead tr:last-child th')].indexOf(button.closest('th'));
        const values = () => [...table.tBodies[0].rows].map((row) => Number(row.querySelectorAll('td')[at].dataset.v));
        """
    for metric, falling in (("gen_free.portability", True), ("efficiency.seconds", False)):
        once = tab.run(column % metric + "button.click(); return values()")
        assert once == sorted(once, reverse=falling) and len(set(once)) > 1
        again = tab.run(column % metric + "button.click(); return [values(), button.closest('th').ariaSort]")
        assert again == [once[::-1] if len(set(once)) == len(once) else sorted(once, reverse=not falling),
                         "ascending" if falling else "descending"]  # fmt: skip
    said = tab.run(
        column % "gen_free.locality" + "button.focus(); return document.getElementById('bubble').textContent"
    )
    assert (
        said.startswith("gen_free.locality: Unrelated prompts") and "Tag: gen_free.question-only.EM.single.40" in said
    )
    assert tab.run("return document.activeElement.getAttribute('aria-describedby')") == "bubble"
    tab.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert tab.run("return document.getElementById('bubble').hidden")


def test_a_pressed_method_dims_the_others(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"])
    press = "document.querySelector('.methods button[data-method=\"1\"]').click();"
    dimmed = "return [...new Set([...document.querySelectorAll('.dim')].map((each) => each.dataset.method))].sort()"
    assert tab.run(press + dimmed) == ["0", "2", "3", "4"]
    assert tab.run(press + dimmed) == []
