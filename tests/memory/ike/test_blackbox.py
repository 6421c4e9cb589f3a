"""Patches on a model behind an endpoint: a real server on this machine, and what it may do wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from endpoint_server import KEY, ModelServer
from ike_tools import FACTS, demonstrations, editor_on, read_before

from kedit_core import Editor, EditPatch
from kedit_core.cli.root import kedit
from kedit_core.errors import (
    BaseMismatchError,
    InputError,
    KeditError,
    MissingExtraError,
    RequirementError,
    StackOrderError,
)
from kedit_core.evaluation import Answers
from kedit_core.patches import LowRankDelta, Route, RoutedModel, RouterKind, RouterOperation
from kedit_core.plugins import GROUPS, OPERATIONS, Catalogue, Found
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.blackbox import Endpoint, EndpointEditor, EndpointError

PROMPTS = ["The capital of France is", "Alice works in the city of", "Bob speaks", "The river Sorrel flows"]


@pytest.fixture
def openai() -> object:
    return pytest.importorskip("openai")


@pytest.fixture(scope="module")
def local() -> Editor:
    return editor_on("gpt2", k=4, positions=1024)


@pytest.fixture(scope="module")
def patch(local: Editor) -> EditPatch:
    made = local.edit(list(FACTS), evaluate=False).patch
    local.restore()
    return made


@pytest.fixture
def server(local: Editor) -> Iterator[ModelServer]:
    """The model without any patch."""
    state = ModelServer(Answers(local.model, local.adapter, local.tokens))
    with state.running():
        yield state


def endpoint(server: ModelServer, **settings: object) -> Endpoint:
    given = {"api": "completions", "retries": 0, "timeout": 10.0, "api_key": KEY, **settings}
    return Endpoint(base_url=server.url, model="tiny", **given)  # type: ignore[arg-type]


# ------------------------------------------------------------------ answers
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_answers_are_those_of_the_model_with_the_patch_on_it(
    openai: object, server: ModelServer, local: Editor, patch: EditPatch, api: str
) -> None:
    client = EndpointEditor(endpoint(server, api=api))
    assert client.generate(PROMPTS, 8) == local.generate(PROMPTS, max_new_tokens=8)
    client.apply(patch)
    with local.applied(patch):
        assert client.sent(PROMPTS) == [read_before(local, prompt) + prompt for prompt in PROMPTS]
        assert client.generate(PROMPTS, 8) == local.generate(PROMPTS, max_new_tokens=8)
    client.remove(patch)
    assert client.generate(PROMPTS, 8) == local.generate(PROMPTS, max_new_tokens=8)
    assert {body["model"] for body in server.bodies} == {"tiny"}
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_settings_reach_the_server(openai: object, server: ModelServer) -> None:
    endpoint(server, extra={"seed": 7}).generate(["Hello"], 5, ["z"])
    assert {**server.bodies[-1]} == {
        "model": "tiny", "prompt": "Hello", "max_tokens": 5, "temperature": 0.0, "stop": ["z"], "seed": 7
    }  # fmt: skip
    endpoint(server, api="chat", system="Be brief.", temperature=None).generate(["Hello"], 5)
    assert {**server.bodies[-1]} == {
        "model": "tiny",
        "max_tokens": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    }


def test_many_are_asked_at_once_but_no_more_than_allowed_and_come_back_in_order(
    openai: object, server: ModelServer, local: Editor
) -> None:
    server.pace = 0.02
    texts = [f"The number {i} is" for i in range(24)]
    found = endpoint(server, concurrency=3).generate([*texts, *texts[:4]], 4)
    assert found == local.generate([*texts, *texts[:4]], max_new_tokens=4)
    assert server.most == 3
    assert len(server.bodies) == 24  # equal texts once


def test_nothing_asked_is_nothing_sent(server: ModelServer) -> None:
    assert endpoint(server).generate([]) == [] and not server.bodies


def test_url_and_key_come_from_the_environment(
    openai: object, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    Endpoint(model="tiny", api="completions").generate(["Hello"], 2)
    assert server.headers[-1]["authorization"] == "Bearer from-the-environment"
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(InputError, match="base URL"):
        Endpoint(model="tiny")


# ------------------------------------------------------------------ what goes wrong
@pytest.mark.parametrize("faults", [["500"], ["429"], ["500", "429", "503"], ["cut"], ["hang"]])
def test_what_passes_is_tried_again(openai: object, server: ModelServer, local: Editor, faults: list[str]) -> None:
    server.faults = list(faults)
    found = endpoint(server, retries=3, timeout=0.5 if "hang" in faults else 10.0).generate(["Hello"], 4)
    assert found == local.generate(["Hello"], max_new_tokens=4)
    assert len(server.bodies) == len(faults) + 1


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (["500"] * 2, "failed 2 tries (500"),
        (["429"] * 2, "failed 2 tries (429"),
        (["401"], "refused the key (401"),
        (["404"], "not found there (404"),
        (["400"], "refused the request (400"),
        (["hang"] * 2, "no answer within 0.3 s in 2 tries"),
        (["cut"] * 2, "cannot be reached"),
        (["{"], "no answer"),
        (["<html>hello</html>"], "no text in it"),
        (['{"choices": []}'], "no text in it"),
        (['{"choices": [{"index": 0, "text": null}]}'], "no text in it"),
        (['{"choices": {"text": "x"}}'], "no text in it"),
        (["[1, 2]"], "no text in it"),
        (['"text"'], "no text in it"),
        (["null"], "no text in it"),
    ],
)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_what_does_not_pass_is_told_in_one_sentence(
    openai: object, server: ModelServer, faults: list[str], told: str, api: str
) -> None:
    server.faults = list(faults)
    started = time.monotonic()
    with pytest.raises(EndpointError) as caught:
        endpoint(server, api=api, retries=1, timeout=0.3 if "hang" in faults else 10.0).generate(["Hello"], 4)
    message = str(caught.value)
    assert told in message and KEY not in message and "\n" not in message
    assert "made to fail" in message or not faults[0].isdigit()
    assert time.monotonic() - started < 10
    assert len(server.bodies) == len(faults)


@pytest.mark.parametrize("code", ["400", "401"])
def test_no_part_of_the_key_is_left_where_what_was_said_is_cut(openai: object, server: ModelServer, code: str) -> None:
    client = endpoint(server)
    for more in range(200, 300, 4):
        server.faults = [f"{code} {'x' * more}"]
        with pytest.raises(EndpointError) as caught:
            client.generate(["Hello"], 2)
        assert KEY[:4] not in str(caught.value)


def test_the_key_is_not_told_with_a_lost_connection(server: ModelServer) -> None:
    library = pytest.importorskip("openai")
    error = library.APIConnectionError(request=None)
    for text in (f"bad header {KEY}", "x" * 295 + KEY):
        error.__cause__ = OSError(text)
        told = endpoint(server)._told(error)
        assert "cannot be reached" in told and KEY[:4] not in told


@pytest.mark.parametrize("key", ["sk-secret\u2019abc", "sk-secret\n", "sk secret"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    key: str, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="the key holds characters") as caught:
        endpoint(server, api_key=key)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="the key holds characters"):
        Endpoint(base_url=server.url, model="m")


def test_after_a_failure_what_has_not_begun_is_not_sent(openai: object, server: ModelServer) -> None:
    server.faults, server.pace = ["401"], 0.05
    with pytest.raises(EndpointError):
        endpoint(server, concurrency=2).generate([f"text {i}" for i in range(50)], 2)
    assert len(server.bodies) < 20


def test_a_server_that_is_not_there_is_told(openai: object, server: ModelServer) -> None:
    nowhere = Endpoint(base_url="http://user:secret@127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1 .*cannot be reached") as caught:
        nowhere.generate(["Hello"])
    assert "secret" not in str(caught.value) and "secret" not in repr(nowhere)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "file:///etc"},
        {"api": "responses"},
        {"api": "completions", "system": "x"},
        {"timeout": 0},
        {"retries": -1},
        {"concurrency": 0},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_sent(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Endpoint(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **settings})  # type: ignore[arg-type]


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kedit-methods-memory\[endpoint\]'"):
        Endpoint(base_url="http://127.0.0.1:1/v1", model="m").generate(["Hello"])


# ------------------------------------------------------------------ patches
def test_patches_that_change_the_model_are_refused(local: Editor, server: ModelServer) -> None:
    place = "transformer.h.1.mlp.c_proj.weight"
    delta = LowRankDelta(place, torch.ones(32, 1), torch.ones(1, 80))
    weights = EditPatch.build(
        method={"name": "by_hand", "distribution": "tests", "version": "1"},
        base=local.stack.base_of([delta]),
        operations=[delta],
    )
    with pytest.raises(InputError, match="low_rank_delta"):
        EndpointEditor(endpoint(server)).apply(weights)


def test_what_a_patch_needs_is_asked_for_as_on_a_model(patch: EditPatch, server: ModelServer) -> None:
    from kedit_core.patches import Requirement

    client = EndpointEditor(endpoint(server))
    with pytest.raises(RequirementError, match="--with encoder=PATH"):
        client.apply(evolve(patch, requires=[Requirement(role="encoder", sha256="0" * 64)]))
    with pytest.raises(StackOrderError):
        client.apply(evolve(patch, parents=["0" * 64]))
    client.apply(patch)
    with pytest.raises(StackOrderError, match="already"):
        client.apply(patch)
    client.remove(patch)
    with pytest.raises(InputError, match="does not act"):
        client.remove(patch)


class Elsewhere(RouterKind):
    """Prompts about Bob go to another model."""

    def route(self, prompts: Sequence[str]) -> list[Route]:
        other = RoutedModel(*tiny("llama"))
        return [Route(model=other) if "Bob" in prompt else Route() for prompt in prompts]


def test_a_model_that_a_route_names_answers_here(openai: object, server: ModelServer, local: Editor) -> None:
    installed = Catalogue.installed()
    entries = [found for group in GROUPS for found in installed.entries(group)]
    catalogue = Catalogue([*entries, Found.of(OPERATIONS, "test.elsewhere", Elsewhere)])
    operation = RouterOperation("test.elsewhere")
    routed = EditPatch.build(
        method={"name": "by_hand", "distribution": "tests", "version": "1"},
        base=local.stack.base_of([operation]),
        operations=[operation],
    )
    client = EndpointEditor(endpoint(server), catalogue)
    client.apply(routed)
    other = Editor(*tiny("llama"))
    found = client.generate(PROMPTS, 6)
    assert found[2] == other.generate(PROMPTS[2], max_new_tokens=6)
    assert found[:2] == local.generate(PROMPTS[:2], max_new_tokens=6)
    assert "Bob speaks" not in [body["prompt"] for body in server.bodies]


def test_a_patch_can_be_made_without_the_model(openai: object, server: ModelServer, local: Editor) -> None:
    records = demonstrations(20)
    client = EndpointEditor(endpoint(server))
    settings = {"encoder": "ngrams", "k": 4}
    made = client.compute([*FACTS, records[3]], settings, demonstrations=records, seed=2)
    assert made.id == client.compute([*FACTS, records[3]], settings, demonstrations=records, seed=2).id
    assert 3 not in made.operations[0].tensors["memory.demo_ids"]
    client.apply(EditPatch.from_bytes(made.to_bytes()))
    by_model = editor_on("gpt2", demos=records, seed=2, k=4, window=1024, answer_tokens=1)
    by_model.edit([*FACTS, records[3]], evaluate=False)
    # what is drawn for a fact follows from its request alone, and a model's Editor also finds the subject's place
    assert [len(text) > 0 for text in client.sent(PROMPTS)] == [True] * 4
    assert client.sent(PROMPTS)[0].endswith(read_before(by_model, PROMPTS[0]).split("\n\n")[-1] + PROMPTS[0])
    with pytest.raises(BaseMismatchError):
        local.apply(made)
    alone = client.compute(FACTS[0], {"encoder": "ngrams"})
    assert alone.operations[0].config["mode"] == "ice"
    with pytest.raises(InputError, match="inline"):
        client.compute(FACTS[0], {"store_demonstrations": "by_hash"})


def test_an_edit_is_measured_as_on_a_model(
    openai: object, server: ModelServer, local: Editor, patch: EditPatch
) -> None:
    requests = [evolve(FACTS[0], target_new="Rome"), *demonstrations(2)]
    client = EndpointEditor(endpoint(server))
    client.apply(patch)
    found = client.evaluate(requests).metrics
    with local.applied(patch):
        wanted = local.evaluate(requests).metrics
    for name in ("reliability", "generalization", "locality"):
        assert found[f"gen_free.{name}"].cases == wanted[f"gen_free.{name}"].cases
        mine = [output["edited"] for output in found[f"gen_free.{name}"].outputs]
        assert mine == [output["edited"] for output in wanted[f"gen_free.{name}"].outputs]
    with pytest.raises(InputError, match="token by token"):
        client.evaluate(requests, protocols=["teacher_forced"])


# ------------------------------------------------------------------ the command
def test_the_command_asks_with_patches(
    openai: object, server: ModelServer, local: Editor, patch: EditPatch, tmp_path: Path
) -> None:
    patch.save(tmp_path / "facts.safetensors")
    url = server.url
    words = ["ask", "--base-url", url, "--model", "tiny", "--api", "completions", "--max-tokens", "6"]
    asked = [*words, "--patch", str(tmp_path / "facts.safetensors"), "--prompt", PROMPTS[0], "--prompt", PROMPTS[1]]
    done = CliRunner().invoke(kedit, [*asked, "--json"], env={"OPENAI_API_KEY": KEY})
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    with local.applied(patch):
        wanted = local.generate(PROMPTS[:2], max_new_tokens=6)
    assert [each["text"] for each in data["answers"]] == wanted
    assert data["patches"] == [patch.id] and KEY not in done.output
    shown = CliRunner().invoke(kedit, [*asked, "--show-sent"])
    assert "New Fact: The capital of France is Rome\nPrompt: The capital of France is\n>" in shown.stdout
    plain = CliRunner().invoke(kedit, [*words, "--prompt", PROMPTS[0]])
    assert "no patch was given" in plain.stderr and plain.exit_code == 0


def test_the_command_fails_in_one_sentence(openai: object, server: ModelServer) -> None:
    url = server.url
    server.faults = ["401"]
    failed = CliRunner().invoke(kedit, ["ask", "--base-url", url, "--model", "m", "--prompt", "x", "--api-key", KEY])
    assert isinstance(failed.exception, KeditError | SystemExit) and failed.exit_code != 0
