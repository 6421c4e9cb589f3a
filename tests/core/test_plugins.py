"""The catalogue of what is installed, and the host that runs the hooks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_blocked import run_without_torch

from kedit_core.contract import (
    API_VERSION,
    DatasetInfo,
    ExporterInfo,
    ExportReport,
    Installed,
    MethodInfo,
    MetricInfo,
    MetricResult,
    ModelSource,
    hookimpl,
)
from kedit_core.errors import DuplicateNameError, KeditError, MethodError, PluginError, RequestError, UnknownNameError
from kedit_core.plugins import COMMANDS, GROUPS, METHODS, OPERATIONS, PLUGINS, Catalogue, Found, Host, load_object
from kedit_core.plugins._entries import read_entries
from kedit_core.requests import EditRequest

ROME = MethodInfo(
    name="rome",
    summary="one fact",
    family="locate",
    implementation="fake_method:Rome",
    hparams="fake_method:RomeHyperParams",
    operations={"low_rank_delta"},
)


def entry(group: str, name: str, target: Any, distribution: str = "kedit-fake", version: str = "1.2") -> Any:
    """An entry point as importlib.metadata gives it; ``target`` may be an exception to raise on loading."""

    def load() -> Any:
        if isinstance(target, BaseException):
            raise target
        return target

    dist = SimpleNamespace(name=distribution, version=version)
    return SimpleNamespace(group=group, name=name, value=f"{name}_module:{name}", dist=dist, load=load)


def catalogue(*entries: Any, **environ: str) -> Catalogue:
    return Catalogue.installed(environ=environ, entry_points=entries)


def plugins(*targets: Any) -> Catalogue:
    """Each target as a plugin of its own distribution: kedit-a, kedit-b, ..."""
    letters = itertools.islice("abcdefgh", len(targets))
    return catalogue(*(entry(PLUGINS, f"plug-{x}", t, f"kedit-{x}") for x, t in zip(letters, targets, strict=True)))


# --- the catalogue -----------------------------------------------------------------------------------------------


def test_methods_are_listed_with_their_distribution() -> None:
    found = catalogue(entry(METHODS, "rome", ROME))
    assert found.methods() == {"rome": ROME}
    assert found.method("rome") is ROME
    assert found.distribution_of(METHODS, "rome") == "kedit-fake"
    assert found.find(METHODS, "rome").provider == "kedit-fake 1.2"
    assert found.problems == []


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    found = catalogue(*(entry(group, "broken", ImportError("no")) for group in GROUPS))
    assert found.problems == []
    assert [each.name for each in found.entries(METHODS)] == ["broken"]
    assert found.commands()["broken"].value == "broken_module:broken"
    assert found.problems == []


@pytest.mark.parametrize("error", [ImportError("no module named x"), SystemExit(3), RuntimeError("x\ny"), OSError()])
def test_a_broken_plugin_is_reported_and_hides_no_other(error: BaseException) -> None:
    good = ModuleType("good")
    found = catalogue(
        entry(METHODS, "rome", ROME),
        entry(METHODS, "mend", error, "kedit-bad", "0.9"),
        entry(PLUGINS, "bad", error, "kedit-bad", "0.9"),
        entry(PLUGINS, "good", good),
    )
    assert list(found.methods()) == ["rome"]
    assert [plugin for _, plugin in found.plugins()] == [good]
    found.methods(), found.plugins()  # asked twice, told once
    assert [problem.found.name for problem in found.problems] == ["mend", "bad"]
    for problem in found.problems:
        assert isinstance(problem.error, PluginError)
        assert "kedit-bad 0.9" in str(problem.error) and problem.found.name in str(problem.error)
        assert problem.error.__cause__ is error
        assert problem.error.distribution == "kedit-bad"
    with pytest.raises(PluginError, match=r"kedit-bad 0\.9"):
        found.method("mend")


def test_keyboard_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        catalogue(entry(METHODS, "mend", KeyboardInterrupt())).methods()


@pytest.mark.parametrize("group", [METHODS, OPERATIONS, COMMANDS])
def test_a_clash_names_both_distributions_when_the_name_is_used(group: str) -> None:
    found = catalogue(
        entry(group, "same", ROME, "kedit-one", "1.0"),
        entry(group, "same", ROME, "kedit-two", "2.0"),
        entry(group, "other", ROME),
    )
    assert [each.name for each in found.entries(group)] == ["other"]
    (problem,) = found.problems
    assert isinstance(problem.error, DuplicateNameError)
    with pytest.raises(DuplicateNameError, match=r"kedit-one 1\.0.*kedit-two 2\.0.*KEDIT_PLUGINS"):
        found.find(group, "same")


def test_the_same_distribution_seen_twice_is_no_clash() -> None:
    found = catalogue(entry(METHODS, "rome", ROME, "kedit_fake"), entry(METHODS, "rome", ROME, "kedit-fake"))
    assert found.method("rome") is ROME and found.problems == []


def test_narrowing() -> None:
    entries = [
        entry(METHODS, "rome", ROME, "kedit-one"),
        entry(METHODS, "mend", attrs.evolve(ROME, name="mend"), "Kedit.Two"),
        entry(PLUGINS, "core", ModuleType("core"), "kedit-core"),
    ]

    def kept(**environ: str) -> set[str]:
        found = catalogue(*entries, **environ)
        return {*found.methods(), *(each.name for each, _ in found.plugins())}

    assert kept() == {"rome", "mend", "core"}
    assert kept(KEDIT_PLUGINS="") == {"core"}
    assert kept(KEDIT_PLUGINS=" kedit_two ,") == {"mend", "core"}
    narrowed = catalogue(*entries, KEDIT_PLUGINS="kedit-one,kedit-too,kedit-core")
    with pytest.raises(UnknownNameError, match=r"Kedit\.Two 1\.2 has it, but KEDIT_PLUGINS leaves that out"):
        narrowed.method("mend")
    (problem,) = narrowed.problems
    assert "'kedit-too'" in str(problem.error) and problem.found.group == "KEDIT_PLUGINS"


def needing(*requires: str, version: str = "1.2", name: str = "kedit-fake", target: Any = ROME) -> Any:
    """A method of a distribution with these requirements; importing it would fail the test."""
    made = entry(METHODS, "rome", target, name, version)
    made.dist.requires = list(requires)
    return made


@pytest.mark.parametrize(
    ("requires", "core"),
    [
        (["kedit-core>=0.1,<0.2"], "0.1.7"),
        (["Kedit_Core>=0.1", "kedit.core[testing]<0.2; python_version > '3'"], "0.1.7"),
        (["kedit-core>=0.1,<0.2"], "0.2.0.dev1+local"),  # not yet 0.2, but a pre-release is not before it either
        (["kedit-core<0.1; extra == 'old'", "kedit-core<0.1; python_version < '3'", "kedit-core-tools<0.1"], "0.3"),
        (["kedit-core @ file:///somewhere"], "0.3"),
        (["kedit-core what?", "", "torch>=99"], "0.3"),
        (["kedit-core>=0.1,<0.2"], "no version"),
        ([], "0.3"),
    ],
)
def test_versions_of_the_core_that_go_with_a_plugin(requires: list[str], core: str) -> None:
    found = Catalogue(read_entries([needing(*requires)]), core=core)
    assert (found.problems == []) is (core != "0.2.0.dev1+local") and bool(found.unfit) is bool(found.problems)


@pytest.mark.parametrize(
    ("requires", "core", "told"),
    [
        ("kedit-core>=0.2,<0.3", "0.1.0", "upgrade kedit-core: pip install 'kedit-core>=0.2,<0.3'"),
        ("kedit-core~=0.2", "0.1.0", "upgrade kedit-core: pip install 'kedit-core~=0.2'"),
        ("kedit-core==0.2.*", "0.1.0", "upgrade kedit-core"),
        ("kedit-core>=0.1,<0.2", "0.2.1", "upgrade kedit-fake: pip install --upgrade kedit-fake"),
        ("kedit-core==0.1.*", "0.2.1", "upgrade kedit-fake"),
        ("kedit-core!=0.1.0", "0.1.0", "upgrade kedit-fake"),
    ],
)
def test_a_plugin_for_another_core_is_left_out_unimported(requires: str, core: str, told: str) -> None:
    others = [needing("kedit-core>=0.0.1", name="kedit-good", target=attrs.evolve(ROME, name="mend"))]
    others[0].name = "mend"
    broken = ImportError("it was imported")
    kind = entry(OPERATIONS, "a.kind", broken)
    kind.dist.requires = [requires]
    found = Catalogue(read_entries([needing(requires, target=broken), kind, *others]), core=core)
    assert list(found.methods()) == ["mend"] and len(found.unfit) == 2
    (problem,) = found.problems  # one sentence for the distribution, not one for each entry
    asked = requires.removeprefix("kedit-core")
    assert str(problem.error).startswith(
        f"kedit-fake 1.2 works with kedit-core {asked}, and this is kedit-core {core}; "
    )
    assert told in str(problem.error)
    for ask in (lambda: found.method("rome"), lambda: found.operation_kind("a.kind", "kedit-fake")):
        with pytest.raises(PluginError, match=f"cannot be used: kedit-fake 1.2 works with .* kedit-core {core}; "):
            ask()
    assert found.including(ROME).method("rome") is ROME
    assert len(found.including().unfit) == 2


def test_metadata_that_cannot_be_read_is_no_fault() -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise FileNotFoundError("METADATA")

    made = entry(METHODS, "rome", ROME)
    made.dist = Gone()
    found = catalogue(made)
    assert found.method("rome") is ROME and found.find(METHODS, "rome").provider == "(unknown distribution)"


def test_unknown_names_tell_the_nearest_and_what_to_do() -> None:
    found = catalogue(entry(METHODS, "rome", ROME))
    with pytest.raises(UnknownNameError, match=r"'romee'.*did you mean 'rome'.*pip install"):
        found.method("romee")
    with pytest.raises(UnknownNameError, match=r"there are rome"):
        found.method("zzz")
    with pytest.raises(UnknownNameError, match=r"none is installed"):
        found.operation_kind("grace.codebook")
    with pytest.raises(UnknownNameError, match=r"the patch says that kedit-methods-memory provides it"):
        found.operation_kind("grace.codebook", "kedit-methods-memory")
    with pytest.raises(UnknownNameError) as told:
        found.operation_kind("grace.codebook", "x; rm -rf ~")
    assert "rm -rf" not in str(told.value)


def test_the_contract_versions_are_compared() -> None:
    for api, remedy in ((API_VERSION + 1, "upgrade kedit-core"), (API_VERSION - 1, "upgrade kedit-fake")):
        found = catalogue(entry(METHODS, "rome", attrs.evolve(ROME, api=api)))
        assert found.methods() == {}
        with pytest.raises(PluginError) as told:
            found.method("rome")
        assert f"version {api}" in str(told.value) and f"version {API_VERSION}" in str(told.value)
        assert remedy in str(told.value) and told.value.hook == "api"


@pytest.mark.parametrize("target", [object(), attrs.evolve(ROME, name="memit"), "text"])
def test_a_method_is_described_by_a_method_info_of_its_name(target: Any) -> None:
    with pytest.raises(PluginError, match=r"kedit-fake 1\.2"):
        catalogue(entry(METHODS, "rome", target)).method("rome")


def test_operation_kinds_are_classes() -> None:
    class Codebook: ...

    found = catalogue(entry(OPERATIONS, "a", Codebook), entry(OPERATIONS, "b", Codebook()))
    assert found.operation_kind("a") is Codebook
    with pytest.raises(PluginError, match="class"):
        found.operation_kind("b")


def test_entries_made_in_code() -> None:
    class Kind: ...

    found = Catalogue([Found.of(OPERATIONS, "test.kind", Kind)])
    assert found.operation_kind("test.kind") is Kind
    assert found.distribution_of(OPERATIONS, "test.kind") == "kedit-local"


def test_plugins_are_objects_or_made_of_them() -> None:
    class Plugin:
        @hookimpl
        def register_metrics(self) -> list[MetricInfo]:
            return []

    shared = Plugin()
    found = plugins(shared, Plugin, lambda: [Plugin(), (Plugin(), None)], [shared, Plugin], lambda: None)
    first, second = ([plugin for _, plugin in found.plugins()] for _ in range(2))
    assert len(first) == 6 and all(isinstance(plugin, Plugin) for plugin in first)
    assert first[0] is second[0] is first[4]
    assert first[1] is not second[1], "a class is called anew for every Editor"
    assert found.problems == []


def test_a_factory_that_fails_is_reported() -> None:
    class Needs:
        def __init__(self, argument: int) -> None: ...

    found = plugins(Needs, lambda: Needs, lambda: 1 / 0)
    assert found.plugins() == []
    assert [problem.found.name for problem in found.problems] == ["plug-a", "plug-b", "plug-c"]
    assert all("cannot be made" in str(problem.error) for problem in found.problems)


def test_core_comes_first_and_the_order_is_that_of_names() -> None:
    names = ["zeta", "alpha", "mid"]
    entries = [entry(PLUGINS, name, ModuleType(name), f"kedit-{name}") for name in names]
    entries.append(entry(PLUGINS, "zzz", ModuleType("zzz"), "kedit-core"))
    for order in itertools.permutations(entries):
        assert [found.name for found, _ in catalogue(*order).plugins()] == ["zzz", "alpha", "mid", "zeta"]


def test_load_object() -> None:
    assert load_object("pathlib:Path.home") == Path.home
    assert load_object("pathlib").Path is Path
    with pytest.raises(AttributeError):
        load_object("pathlib:Nope")


# --- the host ----------------------------------------------------------------------------------------------------

REQUESTS = [EditRequest(prompt="The capital of X is", target_new="Y")]
CONTEXT: Any = SimpleNamespace()
PATCH: Any = SimpleNamespace(name="patch")
HPARAMS: Any = SimpleNamespace()


@pytest.fixture
def method_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    class Rome:
        @hookimpl
        def compute_patch(self, requests: Any) -> Any:
            return SimpleNamespace(requests=requests)

    module = ModuleType("fake_method")
    module.Rome = Rome  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_method", module)
    return module


def raising(error: BaseException, hook: str = "compute_patch") -> Any:
    class Raising:
        @hookimpl(specname=hook)
        def anything(self) -> Any:
            raise error

    return Raising()


def answering(answer: Any, hook: str) -> Any:
    class Answering:
        @hookimpl(specname=hook)
        def anything(self) -> Any:
            return answer

    return Answering()


def test_only_the_chosen_method_is_registered(method_module: ModuleType) -> None:
    found = catalogue(entry(METHODS, "rome", ROME), entry(METHODS, "mend", ImportError("never looked at")))
    host = Host(found, found.method("rome"))
    patch: Any = host.compute_patch(CONTEXT, REQUESTS, HPARAMS)
    assert patch.requests is REQUESTS
    assert isinstance(host.method_plugin, method_module.Rome)
    assert host.names == ("kedit-fake:rome",)
    assert Host(found).names == ()


def test_hosts_share_nothing() -> None:
    found = plugins(lambda: answering([MetricInfo(name="m", summary="")], "register_metrics"))
    first, second = Host(found), Host(found)
    first.register(raising(ValueError(), "register_metrics"))
    assert len(second.metrics()) == 1


def test_without_a_method_nothing_is_computed() -> None:
    with pytest.raises(MethodError, match="kedit methods"):
        Host(catalogue()).compute_patch(CONTEXT, REQUESTS, HPARAMS)


def test_a_method_that_returns_nothing(method_module: ModuleType) -> None:
    method_module.Rome.compute_patch = hookimpl(lambda self: None)
    host = Host(catalogue(entry(METHODS, "rome", ROME)), ROME)
    with pytest.raises(MethodError, match="'rome' returned no patch"):
        host.compute_patch(CONTEXT, REQUESTS, HPARAMS)


def test_a_method_whose_implementation_does_not_fit(method_module: ModuleType) -> None:
    found = catalogue(entry(METHODS, "rome", ROME))
    with pytest.raises(PluginError, match=r"'rome' of kedit-fake 1\.2.*fake_method:Gone"):
        gone = attrs.evolve(ROME, implementation="fake_method:Gone")
        Host(catalogue(entry(METHODS, "rome", gone)), gone)
    del method_module.Rome.compute_patch
    method_module.Rome.evaluate = hookimpl(lambda self: None)
    with pytest.raises(PluginError, match="no compute_patch marked with @hookimpl"):
        Host(found, found.method("rome"))


def test_a_method_described_in_code(method_module: ModuleType) -> None:
    host = Host(catalogue(), ROME)
    assert host.names == ("fake-method:rome",)


@pytest.mark.parametrize("error", [ValueError("a\nb"), KeyError("k"), StopIteration(), MemoryError(), SystemExit(1)])
def test_an_exception_names_plugin_distribution_and_hook(error: BaseException) -> None:
    host = Host(plugins(raising(error)))
    with pytest.raises(PluginError) as told:
        host.compute_patch(CONTEXT, REQUESTS, HPARAMS)
    assert (told.value.plugin, told.value.distribution, told.value.hook) == ("plug-a", "kedit-a", "compute_patch")
    for part in ("plug-a", "kedit-a 1.2", "compute_patch", type(error).__name__):
        assert part in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.__cause__ is error


def test_our_own_errors_pass_with_a_note() -> None:
    error = RequestError("the requests", ["one"])
    with pytest.raises(RequestError) as told:
        Host(plugins(raising(error))).compute_patch(CONTEXT, REQUESTS, HPARAMS)
    assert told.value is error
    assert error.__notes__ == ["in compute_patch of plugin 'plug-a' of kedit-a 1.2"]


def test_interrupts_pass() -> None:
    for error in (KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(type(error)):
            Host(plugins(raising(error))).compute_patch(CONTEXT, REQUESTS, HPARAMS)


class Wrapper:
    """Passes everything on, and notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl(wrapper=True)
    def compute_patch(self, requests: Any) -> Iterator[Any]:
        self.seen.append(requests)
        try:
            answer = yield  # type: ignore[misc]
        except BaseException as error:
            self.seen.append(error)
            raise
        self.seen.append(answer)
        return answer


def test_wrappers_see_the_call_and_its_answer() -> None:
    wrapper = Wrapper()
    assert Host(plugins(wrapper, answering(PATCH, "compute_patch"))).compute_patch(CONTEXT, REQUESTS, HPARAMS) is PATCH
    assert wrapper.seen == [REQUESTS, PATCH]


@pytest.mark.parametrize("error", [ValueError("x"), RequestError("r", ["f"]), KeyboardInterrupt()])
@pytest.mark.parametrize("depth", [1, 3])
def test_what_passes_through_a_wrapper_is_not_blamed_on_it(error: BaseException, depth: int) -> None:
    wrappers = [Wrapper() for _ in range(depth)]
    host = Host(plugins(raising(error)), extra=wrappers)
    with pytest.raises(BaseException) as told:
        host.compute_patch(CONTEXT, REQUESTS, HPARAMS)
    if isinstance(error, ValueError):
        assert isinstance(told.value, PluginError) and told.value.plugin == "plug-a"
        assert told.value.__cause__ is error
    else:
        assert told.value is error
    assert all(wrapper.seen[1] is told.value for wrapper in wrappers)
    assert not any("Wrapper" in note for note in getattr(told.value, "__notes__", ()))


def wrapping(before: Any = None, after: Any = None, yields: int = 1, catch: bool = False) -> Any:
    class Wrapping:
        @hookimpl(wrapper=True)
        def compute_patch(self) -> Iterator[Any]:
            if before:
                raise before
            answer = None
            for _ in range(yields):
                try:
                    answer = yield  # type: ignore[misc]
                except Exception:
                    if not catch:
                        raise
            if after:
                raise after
            return answer

    return Wrapping()


@pytest.mark.parametrize(
    ("wrapper", "told"),
    [
        (wrapping(before=ValueError("early")), "early"),
        (wrapping(after=ValueError("late")), "late"),
        (wrapping(yields=0), "without a yield"),
        (wrapping(yields=2), "a second time"),
        (wrapping(catch=True, after=ValueError("own")), "own"),
    ],
)
@pytest.mark.parametrize("inner", ["fine", "failing"])
def test_what_a_wrapper_does_itself_is_blamed_on_it(wrapper: Any, told: str, inner: str) -> None:
    if inner == "failing" and told in ("late", "a second time"):
        pytest.skip("the inner failure comes first")
    within = answering(PATCH, "compute_patch") if inner == "fine" else raising(OSError("inner"))
    host = Host(plugins(within, wrapper))
    with pytest.raises(PluginError, match=told) as raised:
        host.compute_patch(CONTEXT, REQUESTS, HPARAMS)
    assert (raised.value.plugin, raised.value.hook) == ("plug-b", "compute_patch")


def test_a_wrapper_may_answer_for_a_failure() -> None:
    assert Host(plugins(raising(OSError()), wrapping(catch=True, yields=1))).restore(CONTEXT, PATCH) is False
    with pytest.raises(MethodError):
        Host(plugins(raising(OSError()), wrapping(catch=True))).compute_patch(CONTEXT, REQUESTS, HPARAMS)


def test_implementations_that_do_not_fit_are_refused() -> None:
    def default(self: Any, requests: Any = ()) -> None: ...
    def keyword_only(self: Any, *, requests: Any) -> None: ...
    def star(self: Any, *requests: Any) -> None: ...
    def stars(self: Any, **requests: Any) -> None: ...
    def unknown_argument(self: Any, model: Any) -> None: ...
    def generator(self: Any) -> Iterator[None]:
        yield

    def old_style(self: Any) -> Iterator[None]:
        yield

    async def coroutine(self: Any) -> None: ...
    def plain(self: Any) -> None: ...
    def not_yielding(self: Any) -> None: ...

    def plugin(function: Any, **options: Any) -> Any:
        return type("Odd", (), {"compute_patch": hookimpl(**options)(function)})()

    odd = {
        "default value": plugin(default),
        "keyword-only": plugin(keyword_only),
        "variadic positional": plugin(star),
        "variadic keyword": plugin(stars),
        "asks for the argument 'model'": plugin(unknown_argument),
        "only a wrapper may yield": plugin(generator),
        "coroutine": plugin(coroutine),
        "must yield once": plugin(not_yielding, wrapper=True),
        "old-style": plugin(old_style, hookwrapper=True),
        "did you mean 'compute_patch'": plugin(plain, specname="compute_patches"),
        "no function marked": object(),
        "is a class": Wrapper,
    }
    for told, each in odd.items():
        host = Host(catalogue())
        with pytest.raises(PluginError, match=told):
            host.register(each, name="odd", distribution="kedit-odd", version="3")
        assert host.names == ()
        if told != "is a class":
            found = plugins(each, answering([], "register_metrics"))
            assert Host(found).names == ("kedit-b:plug-b",), "the others are registered all the same"
            (problem,) = found.problems
            assert told in str(problem.error) and problem.found.distribution == "kedit-a"


def test_hooks_of_other_versions_may_be_marked_optional() -> None:
    class Newer:
        @hookimpl(optionalhook=True)
        def hook_of_tomorrow(self, anything: Any) -> None: ...

        @hookimpl
        def register_metrics(self) -> list[MetricInfo]:
            return [MetricInfo(name="x", summary="")]

    assert [info.name for info in Host(plugins(Newer)).metrics()] == ["x"]


def test_properties_are_not_touched() -> None:
    class Touchy:
        @property
        def explosive(self) -> int:
            raise RuntimeError("touched")

        @hookimpl
        def register_metrics(self) -> list[MetricInfo]:
            return []

    assert Host(catalogue(), extra=[Touchy()]).metrics() == []


def test_modules_and_static_functions_are_plugins() -> None:
    module = ModuleType("some_package.module")
    module.register_metrics = hookimpl(lambda: [MetricInfo(name="x", summary="")])  # type: ignore[attr-defined]

    class Static:
        @hookimpl
        @staticmethod
        def register_metrics() -> list[MetricInfo]:
            return [MetricInfo(name="y", summary="")]

    host = Host(catalogue(), extra=[module, Static()])
    assert [info.name for info in host.metrics()] == ["x", "y"]


def chain_link(mark: str, **options: Any) -> Any:
    class Link:
        @hookimpl(**options)
        def prepare_requests(self, requests: Any) -> Any:
            return [*requests, mark] if mark else None

    return Link()


def test_requests_go_from_hand_to_hand_with_core_first() -> None:
    host = Host(plugins(chain_link("a"), chain_link("", tryfirst=True), chain_link("c", tryfirst=True)))
    host.register(chain_link("core"), distribution="kedit-core")
    host.register(chain_link("late", tryfirst=True))
    assert list(host.prepare_requests(CONTEXT, [])) == ["core", "late", "c", "a"]
    assert list(Host(catalogue()).prepare_requests(CONTEXT, REQUESTS)) == REQUESTS
    assert list(Host(plugins(chain_link(""))).prepare_requests(CONTEXT, REQUESTS)) == REQUESTS


def test_a_wrapper_may_change_what_the_chain_gave() -> None:
    class Reverse:
        @hookimpl(wrapper=True)
        def prepare_requests(self, requests: Any) -> Iterator[Any]:
            answers: Any = yield  # type: ignore[misc]
            return [answers[-1][::-1]]

    host = Host(plugins(chain_link("a"), chain_link("b"), Reverse()))
    assert list(host.prepare_requests(CONTEXT, [])) == ["a", "b"]


def test_a_bad_link_is_named_and_the_chain_is_forgotten() -> None:
    bad = answering(7, "prepare_requests")
    host = Host(plugins(chain_link("a"), bad))
    for _ in range(2):
        with pytest.raises(PluginError, match="returned int from prepare_requests") as told:
            host.prepare_requests(CONTEXT, REQUESTS)
        assert told.value.plugin == "plug-b"


@settings(deadline=None)
@given(st.permutations(["core", "first", "last", "plain"]), st.sampled_from(["apply_to_model", "restore"]))
def test_core_puts_on_and_takes_off_last_whatever_the_order(order: list[str], hook: str) -> None:
    called: list[str] = []

    def plugin(name: str) -> Any:
        class Plugin:
            @hookimpl(specname=hook, tryfirst=name == "first", trylast=name == "last")
            def anything(self) -> None:
                called.append(name)

        return Plugin()

    host = Host(catalogue())
    for name in order:
        host.register(plugin(name), distribution="kedit-core" if name == "core" else "kedit-other")
    getattr(host.hook, hook)(context=CONTEXT, patch=PATCH, **({"way": "merged"} if hook == "apply_to_model" else {}))
    assert called == ["first", "plain", "last", "core"]


def test_core_wrappers_and_core_edges_live_together() -> None:
    class Core:
        @hookimpl(wrapper=True)
        def apply_to_model(self) -> Iterator[Any]:
            return (yield)  # type: ignore[misc]

        @hookimpl
        def restore(self) -> bool:
            return True

    host = Host(catalogue())
    host.register(Core(), distribution="kedit-core")
    host.register(answering(Installed(patch_id="x", way="merged", places=()), "apply_to_model"))
    assert host.apply_to_model(CONTEXT, PATCH, "merged").patch_id == "x"
    assert host.restore(CONTEXT, PATCH) is True


def test_answers_of_the_wrong_kind_name_the_plugin() -> None:
    calls: dict[str, Any] = {
        "apply_to_model": lambda host: host.apply_to_model(CONTEXT, PATCH, "merged"),
        "restore": lambda host: host.restore(CONTEXT, PATCH),
        "find_resource": lambda host: host.find_resource("statistics", "key"),
        "register_datasets": lambda host: host.datasets(),
        "register_model_sources": lambda host: host.model_sources(),
        "register_metrics": lambda host: host.metrics(),
        "register_exporters": lambda host: host.exporters(),
        "register_adapters": lambda host: host.adapters(),
        "evaluate": lambda host: host.evaluate(CONTEXT, REQUESTS, None, None),
        "prepare_requests": lambda host: host.prepare_requests(CONTEXT, REQUESTS),
    }
    for hook, call in calls.items():
        with pytest.raises(PluginError, match=f"plug-a.*kedit-a.*{hook}") as told:
            call(Host(plugins(answering("text", hook))))
        assert told.value.hook == hook
    with pytest.raises(PluginError, match="not DatasetInfo"):
        Host(plugins(answering([3], "register_datasets"))).datasets()
    with pytest.raises(MethodError):
        Host(catalogue()).apply_to_model(CONTEXT, PATCH, "merged")
    assert Host(catalogue()).restore(CONTEXT, PATCH) is False
    assert Host(catalogue()).find_resource("a", "b") is None
    assert Host(catalogue()).drop_request(CONTEXT, PATCH, "id") is None


def test_a_wrapper_that_spoils_an_answer_is_named() -> None:
    class Spoiler:
        @hookimpl(wrapper=True)
        def find_resource(self) -> Iterator[Any]:
            yield
            return "text"

    with pytest.raises(PluginError, match="kedit-b:plug-b"):
        Host(plugins(answering(Path("x"), "find_resource"), Spoiler())).find_resource("a", "b")


def test_named_things_are_looked_up() -> None:
    def source(*names: str) -> list[ModelSource]:
        return [ModelSource(names=names, summary="", folder=Path)]

    host = Host(
        plugins(
            answering(source("world:a", "world:b"), "register_model_sources"),
            answering(source("world:b"), "register_model_sources"),
            answering([DatasetInfo(name="world", summary="")], "register_datasets"),
        )
    )
    assert host.model_source("world:a").names == ("world:a", "world:b")
    with pytest.raises(DuplicateNameError, match=r"kedit-a.*kedit-b"):
        host.model_source("world:b")
    with pytest.raises(UnknownNameError, match="did you mean 'world:"):
        host.model_source("world:c")
    assert host.dataset("world").name == "world"
    with pytest.raises(UnknownNameError, match="dataset"):
        host.dataset("wrld")
    with pytest.raises(UnknownNameError, match="none is registered"):
        host.exporter("peft")
    note = ExporterInfo(name="note", summary="", export=lambda patches, out: ExportReport())
    host = Host(plugins(answering([note], "register_exporters")))
    assert host.exporter("note") is note and host.exporters() == [note]
    with pytest.raises(UnknownNameError, match="did you mean 'note'"):
        host.exporter("notes")
    with pytest.raises(ValueError, match="writes is 'stream'"):
        ExporterInfo(name="note", summary="", export=note.export, writes="stream")  # type: ignore[arg-type]


def test_adapters_bear_the_name_of_their_distribution() -> None:
    @attrs.frozen
    class Adapter:
        distribution: str = ""

    mine, told = Adapter(), Adapter("kedit-told")
    assert Host(plugins(answering([mine, told], "register_adapters"))).adapters() == [Adapter("kedit-a"), told]
    assert mine.distribution == ""
    with pytest.raises(PluginError, match="not ModelAdapter"):
        Host(plugins(answering([3], "register_adapters"))).adapters()


def measuring(results: dict[str, float], declares: Sequence[MetricInfo] = ()) -> Any:
    class Measuring:
        @hookimpl
        def evaluate(self) -> dict[str, MetricResult]:
            return {name: MetricResult(value=value, tag="") for name, value in results.items()}

        @hookimpl
        def register_metrics(self) -> list[MetricInfo]:
            return list(declares)

    return Measuring()


def replaces(name: str, replaced: str) -> list[MetricInfo]:
    return [MetricInfo(name=name, summary="", replaces=replaced)]


def evaluated(*targets: Any) -> dict[str, float | None]:
    merged = Host(plugins(*targets)).evaluate(CONTEXT, REQUESTS, CONTEXT, CONTEXT)
    return {key: result.value for key, result in merged.items()}


def test_metrics_are_merged_in_the_order_of_registration() -> None:
    both = evaluated(measuring({"a": 1.0}), answering(None, "evaluate"), measuring({"b": 2.0}))
    assert list(both.items()) == [("a", 1.0), ("b", 2.0)]


def test_a_metric_given_twice_names_both() -> None:
    with pytest.raises(PluginError, match="'a'") as told:
        evaluated(measuring({"a": 1.0}), measuring({"a": 2.0}))
    assert "kedit-a" in str(told.value) and "kedit-b" in str(told.value)
    with pytest.raises(PluginError):
        evaluated(measuring({"a": 1.0}, replaces("a", "a")), measuring({"a": 2.0}, replaces("a", "a")))


def test_a_metric_may_replace_another() -> None:
    core = measuring({"gen.locality": 1.0, "tf.locality": 2.0, "gen.other": 3.0})
    assert evaluated(core, measuring({"gen.locality": 9.0}, replaces("gen.locality", "gen.locality"))) == {
        "gen.locality": 9.0, "tf.locality": 2.0, "gen.other": 3.0,
    }  # fmt: skip
    assert evaluated(core, measuring({"gen.locality": 9.0, "tf.locality": 8.0}, replaces("locality", "locality"))) == {
        "gen.locality": 9.0, "tf.locality": 8.0, "gen.other": 3.0,
    }  # fmt: skip
    # under another name, and only where it was given
    assert evaluated(core, measuring({"gen.strict": 9.0}, replaces("strict", "locality"))) == {
        "gen.strict": 9.0, "tf.locality": 2.0, "gen.other": 3.0,
    }  # fmt: skip
    assert evaluated(core, measuring({}, replaces("strict", "locality"))) == evaluated(core)


def test_calls_may_nest() -> None:
    host = Host(catalogue())

    class Nested:
        @hookimpl
        def evaluate(self) -> dict[str, MetricResult]:
            assert host.find_resource("role", "key") == Path("x")
            return {"a": MetricResult(value=1.0, tag="")}

    host.register(Nested())
    host.register(answering(Path("x"), "find_resource"))
    assert host.evaluate(CONTEXT, REQUESTS, CONTEXT, CONTEXT)["a"].value == 1.0


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_name_is_an_honest_error(name: str) -> None:
    found = catalogue(entry(METHODS, "rome", ROME))
    if name != "rome":
        for look in (found.method, found.operation_kind, lambda text: found.find(COMMANDS, text)):
            with pytest.raises(KeditError):
                look(name)


def test_it_works_without_torch() -> None:
    out = run_without_torch(
        "from kedit_core.plugins import Catalogue, Host\n"
        "import kedit_core.requests, kedit_core.hparams\n"
        "found = Catalogue.installed({'KEDIT_PLUGINS': ''})\n"
        "print(sorted(found.methods()))\n"
    )
    assert out.strip() == "[]"
