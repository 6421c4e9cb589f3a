from __future__ import annotations

import pytest
from attrs import evolve

from kedit_core.errors import DuplicateNameError, InputError, UnknownNameError
from kedit_core.evaluation import (
    GEN_FREE,
    PROTOCOLS,
    TF_EXACT,
    TF_TOKEN,
    CoreMetrics,
    Tag,
    core_metrics,
    items_of,
    metric_result,
    prefetch,
    resolve_protocol,
    resolve_protocols,
)
from kedit_core.requests import Probe

ALL = ("gen_free", "tf_token", "tf_exact")
SUCCESS = ("reliability", "generalization", "portability")


def measure(requests, base, edited, protocols=ALL, scenario="batch", way="merged"):
    return core_metrics(requests, base, edited, protocols=protocols, scenario=scenario, way=way)


def test_a_perfect_oracle_scores_one_everywhere(scripted, make_request, base_of, oracle_of) -> None:
    requests = [make_request(1), make_request(2)]
    base = scripted({k: v for r in requests for k, v in base_of(r).items()})
    edited = scripted({k: v for r in requests for k, v in oracle_of(r).items()})
    results = measure(requests, base, edited)
    assert {name: result.value for name, result in results.items()} == {
        f"{protocol}.{metric}": 1.0 for protocol in ALL for metric in (*SUCCESS, "locality")
    }
    assert results["gen_free.locality"].parts == {"neighborhood": 1.0, "same_relation": 1.0}
    assert results["gen_free.locality"].cases == {"case-1": 1.0, "case-2": 1.0}


def test_an_unedited_model_has_locality_one_and_no_success(scripted, make_request, base_of) -> None:
    request = make_request()
    results = measure([request], scripted(base_of(request)), scripted(base_of(request)))
    for protocol in ALL:
        assert results[f"{protocol}.locality"].value == 1.0
        assert results[f"{protocol}.reliability"].value == 0.0


def test_locality_is_agreement_with_the_base_not_with_the_truth(scripted, make_request, base_of) -> None:
    request = make_request()
    base = scripted({**base_of(request), f"{request.case_id} The capital of Sweden is": " Malmö."})
    edited = scripted({**base_of(request), f"{request.case_id} The capital of Sweden is": " Stockholm."})
    results = measure([request], base, edited, ["gen_free"])
    # neighborhood: one of two agrees; same_relation: all; the case is the mean of its sub-keys
    assert results["gen_free.locality"].parts == {"neighborhood": 0.5, "same_relation": 1.0}
    assert results["gen_free.locality"].value == 0.75


def test_every_output_says_what_was_read(scripted, make_request, base_of, oracle_of) -> None:
    request = make_request()
    base, edited = scripted(base_of(request)), scripted(oracle_of(request))
    results = measure([request], base, edited, ["generate", "teacher_forced"])
    (first,) = results["gen_free.reliability"].outputs
    assert first == {
        "case": "case-1",
        "kind": "reliability",
        "part": None,
        "prompt": request.prompt,
        "expected": ["New York", "NYC"],
        "base": "Oslo",
        "edited": "New York",
        "score": 1.0,
        "contain": True,
        "f1": 1.0,
    }
    local = results["gen_free.locality"].outputs
    assert [output["part"] for output in local] == ["neighborhood", "neighborhood", "same_relation"]
    assert all(output["contain"] is None and output["f1"] == 1.0 for output in local)
    (forced,) = results["tf_token.reliability"].outputs
    assert forced["base"] == "Oslo ." and forced["edited"] == "New York"
    assert set(forced["tokens"]) == {"target", "base", "edited"}


def test_tf_token_is_a_share_and_tf_exact_is_all_or_nothing(scripted, make_request, base_of) -> None:
    request = make_request(target_new="New York")
    edited = scripted({**base_of(request), request.prompt: " New Delhi"})
    results = measure([request], scripted(base_of(request)), edited)
    assert results["tf_token.reliability"].value == 0.5
    assert results["tf_exact.reliability"].value == 0.0
    assert results["gen_free.reliability"].value == 0.0
    assert results["gen_free.reliability"].outputs[0]["f1"] == 0.5


def test_probes_a_protocol_cannot_judge_are_left_out_and_counted(scripted, make_request, base_of) -> None:
    request = make_request(portability={"one_hop": (Probe(prompt="no answer"),)})
    answers = scripted(base_of(request))
    results = measure([request], answers, answers)
    assert results["tf_token.locality"].left_out == 1  # Chad has no answer, so nothing to feed
    assert results["tf_token.locality"].parts == {"neighborhood": 1.0, "same_relation": 1.0}
    assert results["gen_free.locality"].left_out == 0
    assert results["gen_free.portability"].left_out == 1
    assert results["gen_free.portability"].value is None
    assert [o["score"] for o in results["gen_free.portability"].outputs] == [None]


def test_cases_without_probes_are_not_averaged_in(scripted, make_request, base_of, oracle_of) -> None:
    bare = make_request(1, rephrase_prompts=(), locality={}, portability={})
    full = make_request(2)
    answers = scripted({**oracle_of(bare), **oracle_of(full)})
    results = measure([bare, full], answers, answers, ["gen_free"])
    assert results["gen_free.generalization"].cases == {"case-2": 1.0}
    assert results["gen_free.portability"].value == 1.0
    assert measure([bare], answers, answers, ["gen_free"])["gen_free.locality"].value is None


def test_requests_of_one_case_are_averaged_and_requests_without_one_stand_alone(
    scripted, make_request, base_of, oracle_of
) -> None:
    right, wrong = make_request(1), evolve(make_request(2), case_id="case-1")
    alone = evolve(make_request(3), case_id=None)
    script = {**oracle_of(right), **base_of(make_request(2)), **base_of(make_request(3))}
    results = measure([right, wrong, alone], scripted(script), scripted(script), ["gen_free"])
    assert results["gen_free.reliability"].cases == {"case-1": 0.5, alone.id: 0.0}
    assert results["gen_free.reliability"].value == 0.25


def test_everything_is_asked_in_one_call_per_protocol(scripted, make_request) -> None:
    requests = [make_request(n) for n in range(5)]
    base, edited = scripted({}), scripted({})
    measure(requests, base, edited, ["gen_free", "tf_token"])
    # all of it ahead, to be read at once, and then again for the readings
    assert [len(asked) for asked in edited.asked] == [5 * 7, 5 * 6] * 2
    prefetch(base, requests, ["gen_free"])
    assert base.asked[0] == base.asked[2] == base.asked[4]


def test_order_of_requests_does_not_change_scores(scripted, make_request, base_of, oracle_of) -> None:
    requests = [make_request(n) for n in range(4)]
    script = {k: v for n, r in enumerate(requests) for k, v in (oracle_of if n % 2 else base_of)(r).items()}
    forward = measure(requests, scripted(script), scripted(script))
    backward = measure(requests[::-1], scripted(script), scripted(script))
    for name, result in forward.items():
        assert (result.value, result.cases, result.parts) == (
            backward[name].value, backward[name].cases, backward[name].parts
        )  # fmt: skip


def test_items_cover_every_probe(make_request) -> None:
    kinds = [item.metric for item in items_of([make_request()])]
    assert kinds == ["reliability", *["generalization"] * 2, *["locality"] * 3, "portability"]


def test_tags_say_everything_and_read_back(scripted, make_request, base_of) -> None:
    requests = [make_request(n) for n in range(3)]
    answers = scripted({})
    for way, end in (("merged", "+merged"), (None, "")):
        results = measure(requests, answers, answers, scenario="sequential", way=way)
        assert results["gen_free.locality"].tag == f"gen_free.question-only.EM.sequential.3{end}"
        assert results["tf_token.locality"].tag == f"tf_token.question-only.argmax.sequential.3{end}"
        for result in results.values():
            assert str(Tag.parse(result.tag)) == result.tag
    assert len({result.tag for result in results.values()}) == len(ALL)
    with pytest.raises(InputError, match="not a tag"):
        Tag.parse("gen_free.EM")


def test_the_plugin_reads_its_context(scripted, make_request, make_context, base_of) -> None:
    answers = scripted(base_of(make_request()))
    plugin = CoreMetrics()
    context = make_context([GEN_FREE], "single", ways=("merged", "attached"))
    results = plugin.evaluate(context, [make_request()], answers, answers)
    assert results["gen_free.locality"].tag == "gen_free.question-only.EM.single.1+attached-merged"
    assert {info.name for info in plugin.register_metrics()} >= set(results)


def test_protocols_by_name_and_alias() -> None:
    assert resolve_protocol("generate") is GEN_FREE is resolve_protocol("gen_free")
    assert resolve_protocol("teacher_forced") is TF_TOKEN
    assert resolve_protocol(TF_EXACT) is TF_EXACT
    assert resolve_protocols(["generate", "gen_free", "tf_token"]) == (GEN_FREE, TF_TOKEN)
    assert resolve_protocols("generate") == resolve_protocols(GEN_FREE) == (GEN_FREE,)
    with pytest.raises(UnknownNameError, match="did you mean 'gen_free'"):
        resolve_protocol("gen_fre")
    with pytest.raises(UnknownNameError, match="known are gen_free, generate"):
        resolve_protocol("bleu")
    with pytest.raises(DuplicateNameError, match="rename one"):
        resolve_protocols([GEN_FREE, evolve(GEN_FREE, max_new_tokens=7)])


def test_names_tags_and_aliases_are_unique() -> None:
    names = [name for protocol in PROTOCOLS for name in (protocol.name, *protocol.aliases)]
    assert len(set(names)) == len(names)
    assert len({protocol.tag("batch", 1, None) for protocol in PROTOCOLS}) == len(PROTOCOLS)


def test_another_protocol_needs_no_change_here(scripted, make_request, base_of) -> None:
    framed = evolve(GEN_FREE, name="polite", context="qa_inst", aliases=(), frame=lambda prompt: f"Please: {prompt}")
    request = make_request(locality={}, portability={}, rephrase_prompts=())
    answers = scripted({f"Please: {request.prompt}": " NYC."})
    (result, *_) = measure([request], answers, answers, [framed]).values()
    assert result.value == 1.0
    assert result.tag == "gen_free.qa_inst.EM.batch.1+merged"


def test_results_follow_from_their_cases() -> None:
    result = metric_result(
        {"a": 1.0, "b": 3.0, "c": 2.0},
        tag="efficiency.x.y.single.1",
        case_parts={"left": {"a": 1.0}, "none": {}},
        statistics=("median", "p95", "max"),
    )
    assert result.value == 2.0
    assert result.parts == {"left": 1.0, "median": 2.0, "p95": pytest.approx(2.9), "max": 3.0}
    assert metric_result({}, tag="t", statistics=("median",)).value is None
    with pytest.raises(InputError, match="there are median"):
        metric_result({"a": 1.0}, tag="t", statistics=("mode",))
