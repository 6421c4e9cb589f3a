"""The conformance kit passes a method that keeps the contract, and says why others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import toy_methods

from kedit_core import Editor, hookimpl
from kedit_core.plugins import Catalogue
from kedit_core.testing import MethodContract

pytest_plugins = ["pytester"]


class _Toy(MethodContract):
    families: ClassVar = ("gpt2", "llama")

    def catalogue(self) -> Catalogue:
        return Catalogue.installed().including(*toy_methods.ALL)


class TestNudge(_Toy):
    """A good one passes every check."""

    method = "nudge"


class TestNudgeOne(_Toy):
    """Likewise one that edits one request at a time and needs a subject."""

    method = "nudge_one"


class TestDroppable(_Toy):
    """One with the hooks that a method may have: plan and drop_request."""

    method = "droppable"
    families: ClassVar = ("gpt2",)


BROKEN = {
    "mutates_weights": ("test_computing_leaves_everything_as_found", "the weights of"),
    "leaves_a_hook": ("test_computing_leaves_everything_as_found", "hook"),
    "not_deterministic": ("test_same_seed_same_bytes", "the same seed gave two different patches"),
    "accepts_unknown": ("test_unknown_hparams_are_refused", "accepts unknown hparams"),
    "emits_undeclared": ("test_operations_are_those_declared", "dense_delta"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_fails_and_the_message_tells_why(name: str, pytester: pytest.Pytester) -> None:
    check, why = BROKEN[name]
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(
        **{
            f"test_{name}": f"""
            import sys
            sys.path.insert(0, {str(Path(toy_methods.__file__).parent)!r})
            import toy_methods
            from kedit_core.plugins import Catalogue
            from kedit_core.testing import MethodContract

            class TestBroken(MethodContract):
                method = {name!r}
                families = ("llama",)
                def catalogue(self):
                    return Catalogue.installed().including(toy_methods.{name})
            """
        }
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly")
    outcomes = result.parseoutcomes()
    text = result.stdout.str()
    assert outcomes.get("failed", 0) >= 1, text
    assert outcomes.get("passed", 0) >= 3, text
    failed = [line for line in text.splitlines() if line.startswith("FAILED")]
    assert any(check in line for line in failed), failed
    assert why in text


def test_what_a_failure_leaves_behind_is_seen() -> None:
    """The Editor puts flags and hooks back after a failure; the kit looks before it does."""

    class Untidy(_Toy):
        method = "untidy_when_stopped"

    Untidy().test_computing_leaves_everything_as_found("llama")
    with pytest.raises(AssertionError, match=r"was stopped by an error .* the hooks of"):
        Untidy().test_a_failure_leaves_everything_as_found("llama")


@pytest.mark.parametrize(
    ("name", "check", "why"),
    [
        ("plans_by_writing", "test_a_plan_leaves_everything_as_found", "after plan of .* the weights of"),
        ("plans_oddly", "test_a_plan_leaves_everything_as_found", "'place' is no key .* seconds is nan"),
        ("drops_by_writing", "test_dropping_a_request_leaves_everything_as_found", "drop_request of .* the weights of"),
        ("drops_nothing", "test_dropping_a_request_leaves_everything_as_found", "does not hold the 2 other requests"),
    ],
)
def test_what_is_wrong_with_a_plan_or_a_drop_is_said(name: str, check: str, why: str) -> None:
    class Wrong(_Toy):
        method = name

    with pytest.raises(AssertionError, match=why):
        getattr(Wrong(), check)("llama")


def test_a_plan_names_places_of_the_model() -> None:
    class Elsewhere(_Toy):
        method = "droppable"

        def editor(self, family: str, dtype: str = "float32", **settings: Any) -> Editor:
            class Plan:
                @hookimpl
                def plan(self) -> dict[str, Any]:
                    return {"places": ["(chosen by attribution)", "model.layers.1.mlp", "model.layers.9.mlp"]}

            return super().editor(family, dtype, plugins=[Plan()], **settings)

    with pytest.raises(AssertionError, match=r"'model.layers.9.mlp' is no place of the model$"):
        Elsewhere().test_a_plan_leaves_everything_as_found("llama")


@pytest.mark.slow
def test_an_expected_failure_that_holds_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_expected=f"""
        import sys
        sys.path.insert(0, {str(Path(toy_methods.__file__).parent)!r})
        import toy_methods
        from kedit_core.plugins import Catalogue
        from kedit_core.testing import MethodContract

        class TestPessimist(MethodContract):
            method = "nudge"
            families = ("llama",)
            expected_failures = {{"test_nothing_is_printed": "it is thought to print"}}
            def catalogue(self):
                return Catalogue.installed().including(toy_methods.nudge)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-k", "printed")
    assert result.parseoutcomes().get("failed") == 1
