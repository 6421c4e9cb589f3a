"""The conformance kit passes a method that keeps the contract, and says why five others do not."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import toy_methods

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
