"""The conformance kit: what a method must keep to, as tests that its author inherits.

In the tests of a method's distribution::

    from kedit_core.testing import MethodContract

    class TestMine(MethodContract):
        method = "mine"
        hparams = {"layer": 1}

runs every check on tiny random models. ``expected_failures`` names checks that cannot hold, each with its reason; one
that holds all the same is then an error, so the list stays true.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve

from kedit_core.contract import Scenario
from kedit_core.editing import Editor
from kedit_core.editing.planning import plan_faults
from kedit_core.errors import BaseMismatchError, HyperParamsError, MethodError, RequestError
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_core.plugins import Catalogue
from kedit_core.requests import EditRequest
from kedit_core.testing.snapshot import Snapshot, weights
from kedit_core.testing.tiny import tiny

FAMILIES = ("gpt2", "llama", "t5")
DTYPES = ("float32", "bfloat16")


class _InjectedFailureError(Exception):
    """Raised in the middle of a computation to see what is left behind."""


class MethodContract:
    """Subclass it, name the method, and pytest runs every check.

    Attributes:
        method: name of the installed method.
        hparams: settings that suit the tiny models (3 or 4 layers, width 32).
        families: tiny models the method works on (see :data:`kedit_core.testing.tiny.FAMILIES`).
        expected_failures: name of a test method -> why it cannot hold.
    """

    method: ClassVar[str]
    hparams: ClassVar[Mapping[str, Any]] = {}
    families: ClassVar[Sequence[str]] = FAMILIES
    expected_failures: ClassVar[Mapping[str, str]] = {}

    # ---------------------------------------------------------------- what an author may override
    def resources(self) -> Mapping[str, Path]:
        """Files the method needs, by role."""
        return {}

    def options(self) -> Mapping[str, Any]:
        """Options of the Editor beside hparams."""
        return {}

    def catalogue(self) -> Catalogue:
        """Where the method is found; what is installed, unless overridden."""
        return Catalogue.installed()

    def requests(self) -> list[EditRequest]:
        """Three facts in words that every tiny tokenizer can spell."""
        return [
            EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a"),
            EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b"),
            EditRequest(prompt="The mother tongue of Bob is", subject="Bob", target_new="French", case_id="c"),
        ]

    def editor(self, family: str, dtype: str = "float32", **settings: Any) -> Editor:
        """A fresh Editor on a fresh tiny model; equal arguments give equal weights."""
        model, tokenizer = tiny(family)
        model.to(getattr(torch, dtype))
        defaults: dict[str, Any] = {
            "hparams": dict(self.hparams),
            "options": self.options(),
            "resources": self.resources(),
            "catalogue": self.catalogue(),
        }
        return Editor(model, tokenizer, self.method, **{**defaults, **settings})

    # ---------------------------------------------------------------- machinery
    @pytest.fixture(autouse=True)
    def _expect(self, request: pytest.FixtureRequest) -> None:
        reason = self.expected_failures.get(request.node.originalname)
        if reason is not None:
            request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture(autouse=True)
    def _grad_mode(self) -> Iterator[None]:
        mode = torch.is_grad_enabled()
        yield
        torch.set_grad_enabled(mode)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each check on the families and dtypes it asks for."""
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", list(self.families))
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", list(DTYPES))
        if "scenario" in metafunc.fixturenames:
            metafunc.parametrize("scenario", sorted(self.catalogue().method(self.method).scenarios))

    def _compute(self, editor: Editor, requests: Sequence[EditRequest] | None = None) -> EditPatch:
        """One patch, computed and not applied, without the Editor's own guard hiding who did what."""
        try:
            return editor.compute(list(requests or self.requests()[:1]))
        except MethodError as error:
            raise AssertionError(f"method {self.method!r} failed its Editor's checks: {error}") from error

    def _compute_unguarded(self, editor: Editor) -> None:
        """The method's own compute_patch: the Editor would put flags and hooks back that a failure leaves behind."""
        context = editor.context()
        context.requests = editor.host.prepare_requests(context, self.requests()[:1])
        if context.hparams is not None:
            editor.host.compute_patch(context, context.requests, context.hparams)

    def _drop_unguarded(self, editor: Editor, patch: EditPatch) -> None:
        """The method's own drop_request, without the Editor putting back what it leaves behind."""
        context = editor.context()
        context.requests = editor.host.prepare_requests(context, self.requests())
        editor.host.drop_request(context, patch, context.requests[1].id)

    def _unusual(self, editor: Editor) -> None:
        """Bring the model into a state nobody thinks of, so that putting back a constant is not enough."""
        parameters = list(editor.model.parameters())
        for parameter in parameters[::2]:
            parameter.requires_grad_(False)
        parameters[1].grad = torch.zeros_like(parameters[1])
        for module in list(editor.model.modules())[1::3]:
            module.training = True

    # ---------------------------------------------------------------- the checks
    def test_describing_the_method_imports_no_torch(self) -> None:
        """Listing methods and reading their settings must cost nothing."""
        catalogue = self.catalogue()
        info = catalogue.method(self.method)
        modules = {catalogue.find("kedit.methods", self.method).value, info.hparams}
        for module in sorted(value.partition(":")[0] for value in modules):
            code = f"import sys; sys.path[:] = {sys.path!r}; sys.modules['torch'] = None; import {module}"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, (
                f"importing {module} needs torch; describe the method and its HyperParams in modules of their own:\n"
                f"{done.stderr}"
            )

    def test_unknown_hparams_are_refused(self, family: str) -> None:
        """A misspelt setting must not be swallowed, neither by the Editor nor by the class of settings itself."""
        catalogue = self.catalogue()
        settings = catalogue.hparams_class(catalogue.method(self.method))
        wrong = {**self.hparams, "no_such_setting_at_all": 1}
        for where, make in (
            ("Editor", lambda: self.editor(family, hparams=wrong)),
            (f"{settings.__name__}.from_dict", lambda: settings.from_dict(wrong)),
        ):
            try:
                make()
            except HyperParamsError as error:
                assert "no_such_setting_at_all" in str(error)
            else:
                raise AssertionError(
                    f"method {self.method!r} accepts unknown hparams (through {where}); derive its class from "
                    "HyperParams and let that refuse them"
                )

    def test_computing_leaves_everything_as_found(self, family: str) -> None:
        """Weights bit-identical; flags, modes, hooks and random states as they were."""
        editor = self.editor(family)
        self._unusual(editor)
        with torch.no_grad():
            before = Snapshot(editor.model)
            self._compute(editor)
            _same(before, editor, f"after compute_patch of {self.method!r}")

    def test_a_failure_leaves_everything_as_found(self, family: str) -> None:
        """Also when the computation is cut short in the middle."""
        reached = 0
        for call in (1, 2, 4):
            editor = self.editor(family)
            self._unusual(editor)
            calls = 0

            def fail(*_: Any, last: int = call) -> None:
                nonlocal calls
                calls += 1
                if calls == last:
                    raise _InjectedFailureError

            editor.adapter.block(editor.adapter.num_layers - 1).register_forward_pre_hook(fail)
            before = Snapshot(editor.model)
            try:
                self._compute_unguarded(editor)
            except Exception:
                reached += 1
            _same(
                before, editor, f"after compute_patch of {self.method!r} was stopped by an error in forward call {call}"
            )
        assert reached or self._runs_no_model(family), (
            f"method {self.method!r} swallowed an error raised inside the model's forward"
        )

    def _runs_no_model(self, family: str) -> bool:
        editor = self.editor(family)
        calls: list[int] = []
        editor.adapter.block(editor.adapter.num_layers - 1).register_forward_pre_hook(lambda *_: calls.append(1))
        self._compute(editor)
        return not calls

    def test_same_seed_same_bytes(self, family: str) -> None:
        """Two runs from the same start make the same file, whatever the global random state."""
        bytes_ = []
        for noise in (1, 2):
            state = random.getstate(), torch.get_rng_state()
            random.seed(noise)
            torch.manual_seed(noise)
            try:
                bytes_.append(self._compute(self.editor(family, seed=7)).to_bytes())
            finally:
                random.setstate(state[0])
                torch.set_rng_state(state[1])
        assert bytes_[0] == bytes_[1], (
            f"method {self.method!r} is not deterministic: the same seed gave two different patches; draw random "
            "numbers from context.generator only"
        )

    def test_operations_are_those_declared(self, family: str) -> None:
        """MethodInfo.operations is what users and tools rely on."""
        editor = self.editor(family)
        made = {operation.type for operation in self._compute(editor).operations}
        declared = set(editor.info.operations) if editor.info else set()
        assert made, f"method {self.method!r} made a patch without any operation"
        assert made <= declared, (
            f"method {self.method!r} emits {sorted(made - declared)}, and declares only {sorted(declared)}"
        )

    def test_apply_and_remove_are_exact(self, family: str, dtype: str) -> None:
        """The patch changes what the model says, and taking it off gives back every bit."""
        editor = self.editor(family, dtype)
        patch = self._compute(editor)
        before, logits = Snapshot(editor.model), _logits(editor)
        editor.apply(patch)
        assert not torch.equal(_logits(editor), logits), f"the patch of {self.method!r} changes nothing"
        editor.remove(patch)
        _same(before, editor, f"after removing the patch of {self.method!r}")
        assert torch.equal(_logits(editor), logits)

    def test_saved_and_loaded_it_is_the_same(self, family: str, tmp_path: Path) -> None:
        """The file holds all of the edit: same bytes when saved again, same logits on another copy of the model."""
        editor = self.editor(family)
        patch = self._compute(editor)
        patch.save(tmp_path / "patch.safetensors")
        loaded = EditPatch.load(tmp_path / "patch.safetensors")
        assert loaded.to_bytes() == patch.to_bytes() == (tmp_path / "patch.safetensors").read_bytes()
        assert loaded.id == patch.id
        editor.apply(patch)
        other = self.editor(family)
        other.apply(loaded)
        assert torch.equal(_logits(editor), _logits(other)), (
            "the loaded patch gives other logits than the one just made"
        )

    def test_a_wrong_base_is_refused(self, family: str) -> None:
        """Applying to other weights must fail and change nothing."""
        editor = self.editor(family)
        patch = self._compute(editor)
        if not patch.base.tensors:
            pytest.skip("the patch touches no weight of the base")
        other = self.editor(family)
        with torch.no_grad():
            dict(other.model.named_parameters())[next(iter(patch.base.tensors))].view(-1)[0] += 1
        before = Snapshot(other.model)
        with pytest.raises(BaseMismatchError):
            other.apply(patch)
        _same(before, other, "after a patch was refused")

    def test_scenarios_it_claims_work(self, family: str, scenario: Scenario) -> None:
        """Every scenario in MethodInfo.scenarios edits all requests, and nothing is left after restore()."""
        editor = self.editor(family)
        before = Snapshot(editor.model)
        result = editor.edit(self.requests(), scenario=scenario, evaluate=False)
        edited = [fact["case_id"] for patch in result.patches for fact in _facts(patch)]
        if scenario == "single":
            assert edited == [request.case_id for request in self.requests()]
        else:
            assert {request.case_id for request in self.requests()} == set(edited)
            assert weights(editor.model) != before.weights or editor.stack.patches
        editor.restore()
        _same(before, editor, f"after {scenario} and restore()")

    def test_a_plan_leaves_everything_as_found(self, family: str) -> None:
        """A plan costs nothing but time, and says only what a plan can say (see docs/hooks.md)."""
        editor = self.editor(family)
        if not _implements(editor, "plan"):
            pytest.skip("the method has no hook plan")
        self._unusual(editor)
        context, before = editor.context(), Snapshot(editor.model)
        context.requests = editor.host.prepare_requests(context, self.requests())
        told = editor.host.plan(context, context.requests, context.hparams) if context.hparams is not None else None
        _same(before, editor, f"after plan of {self.method!r}")
        faults = plan_faults(told or {})
        places = {*dict(editor.model.named_parameters()), *dict(editor.model.named_modules())}
        if not faults:
            named = (told or {}).get("places") or ()
            faults = [f"{each!r} is no place of the model" for each in named if each[:1] != "(" and each not in places]
        assert not faults, f"method {self.method!r} plans wrongly: {'; '.join(faults)}"

    def test_dropping_a_request_leaves_everything_as_found(self, family: str) -> None:
        """A patch without one of its facts is like any other: it holds the rest, goes on and comes off."""
        editor = self.editor(family)
        if not _implements(editor, "drop_request"):
            pytest.skip("the method has no hook drop_request")
        requests = self.requests()
        patch = editor.edit(requests, evaluate=False).patch
        editor.restore()
        self._unusual(editor)
        before = Snapshot(editor.model)
        self._drop_unguarded(editor, patch)
        _same(before, editor, f"after drop_request of {self.method!r}")
        editor = self.editor(family)
        before, logits = Snapshot(editor.model), _logits(editor)
        try:
            made = editor.drop(patch, "#2")
        except MethodError as error:
            raise AssertionError(f"method {self.method!r} failed its Editor's checks: {error}") from error
        assert [fact["prompt"] for fact in _facts(made)] == [
            requests[0].prompt,
            *[each.prompt for each in requests[2:]],
        ]
        assert made.id == editor.drop(patch, "#2").id, (
            f"method {self.method!r} dropped the same request twice and made two different patches"
        )
        editor.apply(made)
        assert not torch.equal(_logits(editor), logits), f"what is left of the patch of {self.method!r} changes nothing"
        editor.remove(made)
        _same(before, editor, f"after removing what is left of the patch of {self.method!r}")

    def test_bad_requests_are_refused_before_any_work(self, family: str) -> None:
        """An empty target, or a missing subject where one is needed, stops the edit with the model untouched."""
        editor = self.editor(family)
        good = self.requests()[0]
        bad = [evolve(good, target_new=" ")]
        if editor.info and editor.info.needs_subject:
            bad.append(evolve(good, subject=None, subject_span=None))
            bad.append(evolve(good, subject="Zanzibar", subject_span=None))
        before = Snapshot(editor.model)
        for request in bad:
            with pytest.raises(RequestError):
                editor.edit([good, request], evaluate=False)
        _same(before, editor, "after bad requests were refused")

    def test_nothing_is_printed(self, family: str, capfd: pytest.CaptureFixture[str]) -> None:
        """A library logs; commands print."""
        editor = self.editor(family)
        capfd.readouterr()
        editor.edit(self.requests()[:1], scenario=None, evaluate=False)
        printed = capfd.readouterr().out
        assert printed == "", f"method {self.method!r} writes to stdout: {printed[:200]!r}"


def _implements(editor: Editor, hook: str) -> bool:
    return any(not each.wrapper for each in getattr(editor.host.hook, hook).get_hookimpls())


def _facts(patch: EditPatch) -> list[Mapping[str, Any]]:
    return [] if isinstance(patch.requests, PrivateRequests) else list(patch.requests)


def _same(before: Snapshot, editor: Editor, when: str) -> None:
    if changed := before.differences(editor.model):
        raise AssertionError(f"{when} the model or process is not as it was found; changed: {'; '.join(changed)}")


def _logits(editor: Editor) -> torch.Tensor:
    """Logits ``[tokens, vocab]`` on two of the requests' prompts, one after another, routed as answers are."""
    texts = ("The capital of France is", "Alice works in the city of")
    rows = []
    for text, route in zip(texts, editor.stack.route(texts), strict=True):
        model = route.model.model if route.model else editor.model
        tokenizer = route.model.tokenizer if route.model else editor.tokenizer
        inputs = {"input_ids": tokenizer(route.context + text, return_tensors="pt")["input_ids"]}
        if getattr(model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.zeros((1, 1), dtype=torch.long)
        with torch.no_grad():
            rows.append(model(**inputs).logits.flatten(0, 1))
    return torch.cat(rows)
