"""What SERAC's training draws, which losses it takes, and that it leaves the base alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from serac_tools import an_editor, editor_on
from torch import Tensor

from kedit_core import Editor, EditRequest, Probe
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, Pair, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_core.training import Training, train
from kedit_core.training.folder import content_digest
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.checkpoint import SeracEditor, read_state
from kedit_methods_memory.serac.training.losses import EPS, divergence, mixture, token_nll
from kedit_methods_memory.serac.training.negatives import Neighbours
from kedit_methods_memory.serac.training.records import Drawing, ScopeBatch, records_of
from kedit_methods_memory.serac.training.step import SeracStep, target_logits

NAMES = ("Mira", "Oren", "Lena", "Tomas", "Edda", "Jonas", "Norrvale", "Arvania", "Haltia", "Eskel", "Brink", "Sorrel")
PLACES = ("Eskel", "Brink", "Port Lumen", "Haltia", "Arvania")


def facts(count: int = 12) -> list[EditRequest]:
    """Facts with two other wordings each, and a neighbour's question as a locality probe."""
    found = []
    for number in range(count):
        name, other = f"{NAMES[number % 12]} {NAMES[number // 12]}", NAMES[(number + 5) % 12]
        found.append(
            EditRequest(
                prompt=f"{name} lives in the town of",
                target_new=PLACES[number % 5],
                ground_truth=PLACES[(number + 1) % 5],
                case_id=f"f{number}",
                rephrase_prompts=(f"The town where {name} lives is", f"{name} has a house in"),
                locality={"other": (Probe(prompt=f"The language that {other} speaks is"),)},
                meta={"relation": "town"},
            )
        )
    return found


def settings(**over: Any) -> SeracTrainingHyperParams:
    quick = {
        "iterations": 4, "val_interval": 2, "accumulate": 2, "batch_size": 3, "scratch_width": 16, "lr": 1e-3,
        "hard_near": 0, "hard_far": 3,
    }  # fmt: skip
    return SeracTrainingHyperParams.from_dict({**quick, **over})


def a_step(family: str = "gpt2", hparams: SeracTrainingHyperParams | None = None, **scope: Any) -> SeracStep:
    made = an_editor(family, scale=1e-3, **scope)
    model, tokenizer = tiny(family)
    view = AdapterRegistry(ADAPTERS).for_model(model)
    base = ForwardTools(model, view, TokenBoundary(tokenizer, encoder_decoder=view.is_encoder_decoder))
    if made.counterfactual is None:
        return SeracStep(made, base, base, hparams or settings())
    other = AdapterRegistry(ADAPTERS).for_model(made.counterfactual.model)
    answering = ForwardTools(made.counterfactual.model, other, base.boundary)
    return SeracStep(made, answering, base, hparams or settings())


def a_batch(hparams: SeracTrainingHyperParams | None = None, count: int = 3, seed: int = 0) -> ScopeBatch:
    chosen = hparams or settings()
    drawing = Drawing(records_of(facts(), chosen), chosen)
    return drawing.batch(range(count), torch.Generator().manual_seed(seed))


def trainee(family: str = "gpt2", **settings: Any) -> Editor:
    model, tokenizer = tiny(family)
    return Editor(model, tokenizer, "serac", **settings)


def train_serac(
    editor: Editor,
    requests: list[EditRequest],
    folder: Path,
    hparams: SeracTrainingHyperParams,
    classifier: str | Path = "scratch",
    counterfactual: Path | None = None,
    **more: Any,
) -> Training:
    options = {"classifier": str(classifier)}
    if counterfactual is not None:
        options["counterfactual"] = str(counterfactual)
    return train(editor, requests, folder, hparams, options=options, **more)


def saved_model(folder: Path, family: str) -> Path:
    model, tokenizer = tiny(family, seed=10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- drawing
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_no_prompt_of_a_record_is_out_of_its_own_scope(own: bool, hard: float) -> None:
    """Records of one case, and texts that two records share, are never each other's negatives."""
    requests = facts(8)
    requests[1] = evolve(requests[1], case_id="f0")
    # two ids with one text, and one whose text is another's rewording
    requests[3] = evolve(requests[2], target_new="Arvania", case_id="f3")
    requests[5] = evolve(requests[5], prompt=requests[4].rephrase_prompts[0])
    hparams = settings(own_negatives=own, hard_negatives=hard)
    records = records_of(requests, hparams)
    near = Neighbours.among([r.prompt for r in records], [r.id for r in records], _spelled, 0, 5, 0.1)
    drawing = Drawing(records, hparams, near if hard else None)
    in_scope = {r.id: {text for q in requests if q.case_id == r.id for text in (q.prompt, *q.rephrase_prompts)}
                for r in records}  # fmt: skip
    generator, kinds = torch.Generator().manual_seed(0), Counter[bool]()
    for _ in range(60):
        batch = drawing.batch(range(8), generator)
        for text, of, identity in zip(batch.loc, batch.loc_ids, batch.ids, strict=True):
            assert text not in in_scope[identity]
            assert of != identity
            kinds[of is None] += 1
        for (prompt, answer), (_, target) in zip(batch.edit_outer, batch.edit_inner, strict=True):
            assert answer == target
            assert any(prompt in texts for texts in in_scope.values())
    assert (kinds[True] > 0) == own
    assert kinds[False] > 0


def test_a_text_that_two_ids_share_is_out_of_the_scope_of_neither() -> None:
    """With all pairs of a micro-batch: what another record was given is not held against the entry that says it."""
    hparams = settings(use_all_negatives=True)
    batch = evolve(a_batch(), loc_ids=("f5", "f6", "f7"))
    shared = evolve(batch, loc=(*batch.loc[:2], batch.edit_inner[0][0]))
    step = a_step(hparams=hparams)
    assert set(step._apart(batch)) - set(step._apart(shared)) == {(2, 0)}
    outer = evolve(batch, loc=(*batch.loc[:2], batch.edit_outer[1][0]))
    assert (2, 1) not in step._apart(outer) and (2, 2) in step._apart(outer)


def test_the_one_record_out_of_scope_is_always_found() -> None:
    """However unlikely it is to be drawn: a training must not end by chance in the middle."""
    requests = [evolve(each, case_id="one", locality={}) for each in facts(12) * 60] + [
        evolve(each, case_id="other", prompt=f"Now {each.prompt}", rephrase_prompts=("Now what?",), locality={})
        for each in facts(1)
    ]
    drawing = Drawing(records_of(requests, settings()), settings())
    generator = torch.Generator().manual_seed(0)
    found = Counter(text for _ in range(40) for text in drawing.batch([0, 5], generator).loc)
    assert set(found) == {requests[-1].prompt, "Now what?"} and min(found.values()) > 25


def test_hard_negatives_follow_their_weights() -> None:
    texts = [f"{name} lives in" for name in NAMES]
    near = Neighbours.among(texts, texts, _spelled, near=2, far=6, temperature=0.1)
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(near.draw(0, generator) for _ in range(3000))
    vectors = _spelled(texts).double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = sorted(((float(vectors[0] @ vectors[i]), i) for i in range(1, 12)), reverse=True)[2:6]
    weights = torch.tensor([cosine for cosine, _ in cosines]).div(0.1).exp()
    for (_, index), share in zip(cosines, (weights / weights.sum()).tolist(), strict=True):
        assert abs(drawn[index] / 3000 - share) < 0.04
    assert sum(drawn[index] for _, index in cosines) == 3000


def _spelled(texts: Any) -> Tensor:
    """Counts of letters."""
    return torch.tensor([[float(text.count(chr(97 + i))) for i in range(26)] for text in texts])


def test_what_records_hold() -> None:
    request = evolve(facts()[0], portability={"hop": (Probe(prompt="His town lies in", answers=("Haltia",)),)})
    (record,) = records_of([request], settings(outer=["rephrase", "portability"]))
    assert record.inside == (*((text, None) for text in request.rephrase_prompts), ("His town lies in", "Haltia"))
    assert record.answers == (request.target_new,)
    varied = records_of(facts(), settings(alternatives_from="relation"))
    assert varied[0].answers == tuple(sorted(PLACES))
    with pytest.raises(InputError, match="meta"):
        records_of(facts(), settings(alternatives_from="kind"))
    with pytest.raises(InputError, match="none of 1"):
        records_of([evolve(request, rephrase_prompts=())], settings(outer=["rephrase"]))
    with pytest.raises(InputError, match="two cases"):
        Drawing(records_of(facts(1), settings()), settings(own_negatives=False))


def test_flipping_edits_with_the_other_wording() -> None:
    hparams = settings(flip=True, outer=["rephrase"])
    batch = Drawing(records_of(facts(), hparams), hparams).batch([0], torch.Generator().manual_seed(0))
    assert batch.edit_inner[0][0] in facts()[0].rephrase_prompts
    assert batch.edit_outer[0][0] == facts()[0].prompt


# ---------------------------------------------------------------- losses
def test_5_each_model_learns_from_its_own_loss_only() -> None:
    """Acceptance check 5 of the sheet."""
    step = a_step()
    parameters = step.parameters()
    names, tensors = list(parameters), list(parameters.values())
    stepped = step(a_batch())
    for loss, mine in (("loc", "classifier."), ("edit", "counterfactual.")):
        grads = torch.autograd.grad(stepped.losses[loss], tensors, allow_unused=True, retain_graph=True)
        for name, grad in zip(names, grads, strict=True):
            assert grad is None or name.startswith(mine), f"{loss} reaches {name}"
        assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
    base = list(step.base.model.parameters())
    assert all(each is None for each in torch.autograd.grad(stepped.total, base, allow_unused=True))
    assert torch.allclose(stepped.total, 0.1 * stepped.losses["edit"] + stepped.losses["loc"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_supervised_losses_are_those_of_single_rows(family: str) -> None:
    """Padding has no influence: a batch's losses are those of its rows, each read alone."""
    step, batch = a_step(family), a_batch()
    with torch.no_grad():
        stepped = step(batch)
        scope, classifier = step.editor.scope, step.editor.classifier
        inside, outside, logs = [], [], []
        for row in range(3):
            key = classifier.embed([scope.key(*batch.edit_inner[row])])[0, 0].double()
            for texts, found in ((batch.edit_outer[row][0], inside), (batch.loc[row], outside)):
                found.append(-1e-3 * ((classifier.embed([texts])[0, 0].double() - key) ** 2).sum())
            prompt, answer = batch.edit_outer[row]
            pair = step.answering.boundary.pair(scope.before(*batch.edit_inner[row]) + prompt, answer)
            logprobs = target_logits(step.answering, [pair], grad=False).double().log_softmax(-1)
            logs += [float(logprobs[t, token]) for t, token in enumerate(pair.target_ids)]
    loc = -torch.stack(inside).mean() - torch.log(-torch.expm1(torch.stack(outside))).mean()
    assert abs(float(stepped.losses["loc"]) - float(loc)) < 1e-4
    assert abs(float(stepped.losses["edit"]) + sum(logs) / len(logs)) < 1e-4


def test_all_negatives_but_those_of_the_same_record() -> None:
    hparams = settings(use_all_negatives=True)
    batch = evolve(a_batch(), loc_ids=("f1", None, "f7"))
    pairs = a_step(hparams=hparams)._apart(batch)
    assert batch.ids == ("f0", "f1", "f2")
    assert pairs == [(0, 0), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_the_cross_attention_form_is_trained_on_pairs() -> None:
    step = a_step(cross_attend=True, labelled=True, hparams=settings(form="cross_attend"))
    batch = a_batch()
    inside, outside = step._similarities(batch)
    classifier, scope = step.editor.classifier, step.editor.scope
    for row in range(3):
        key = scope.key(*batch.edit_inner[row])
        for found, query in ((inside, batch.edit_outer[row][0]), (outside, batch.loc[row])):
            alone = classifier.pair_log_similarities([key], [query])
            torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=0)


def test_the_soft_mixture_is_that_of_the_sheet() -> None:
    generator = torch.Generator().manual_seed(0)
    base, other = (torch.randn(4, 9, generator=generator) for _ in range(2))
    weights = torch.tensor([0.0, 0.25, 0.5, 1.0])
    plain = torch.empty(4, 9, dtype=torch.float64)
    for row, weight in enumerate(weights.tolist()):
        one, two = base[row].double().softmax(-1), other[row].double().softmax(-1)
        plain[row] = torch.log((1 - weight) * one + weight * two + EPS)
    torch.testing.assert_close(mixture(base, other, weights).double(), plain, atol=1e-6, rtol=0)
    logs = base.log_softmax(-1)
    assert float(divergence(logs, logs)) == 0.0
    assert float(token_nll(logs, torch.tensor([1, 2, 3, 4]))) == pytest.approx(
        -sum(float(logs[row, row + 1]) for row in range(4)) / 4
    )


def test_the_easyedit_objective_by_hand() -> None:
    """Mixture over the nearest entry for the edit's own prompt, divergence at the end of prompts out of scope."""
    step, batch = a_step(hparams=settings(objective="easyedit")), a_batch()
    with torch.no_grad():
        stepped = step(batch)
        scope, classifier, boundary = step.editor.scope, step.editor.classifier, step.base.boundary
        keys = [classifier.embed([scope.key(*edit)])[0, 0] for edit in batch.edit_inner]

        def mixed(prompt: str, ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            query = classifier.embed([prompt])[0, 0]
            distances = [float(((query - key) ** 2).sum()) for key in keys]
            best = min(range(3), key=lambda i: distances[i])
            share = torch.tensor(-1e-3 * distances[best]).exp().repeat(len(ids))
            base = target_logits(step.base, [Pair(boundary.prompt(prompt).ids, ids)], grad=False)
            context = boundary.prompt(scope.before(*batch.edit_inner[best]) + prompt).ids
            other = target_logits(step.answering, [Pair(context, ids)], grad=False)
            return base.log_softmax(-1), mixture(base, other, share)

        logs: list[float] = []
        for prompt, answer in batch.edit_inner:
            ids = boundary.pair(prompt, answer).target_ids
            logs += mixed(prompt, ids)[1].gather(1, torch.tensor(ids).unsqueeze(1))[:, 0].tolist()
        apart = [divergence(*mixed(text, (0,))) for text in batch.loc]
    assert abs(float(stepped.losses["edit"]) + sum(logs) / len(logs)) < 1e-4
    assert abs(float(stepped.losses["loc"]) - float(torch.stack(apart).mean())) < 1e-4


def test_mixing_models_with_other_tokens_is_refused() -> None:
    step = a_step()
    model, tokenizer = tiny("llama")
    view = AdapterRegistry(ADAPTERS).for_model(model)
    other = ForwardTools(model, view, TokenBoundary(tokenizer))
    with pytest.raises(InputError, match="other tokens"):
        SeracStep(step.editor, step.answering, other, settings(objective="easyedit"))


def test_only_the_last_blocks_are_trained() -> None:
    step = a_step(hparams=settings(trainable_blocks=1))
    names = set(step.parameters())
    assert any(name.startswith("counterfactual.transformer.h.2.") for name in names)
    assert not any(".h.0." in name or ".h.1." in name or "wte" in name or "embeddings" in name for name in names)
    assert any(name.startswith("classifier.transformer.layer.1.") for name in names)
    assert "counterfactual.transformer.ln_f.weight" in names


# ---------------------------------------------------------------- whole trainings
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_training_leaves_the_base_alone_and_makes_an_editor(family: str, tmp_path: Path) -> None:
    editor = trainee(family)
    before = Snapshot(editor.model)
    start = saved_model(tmp_path / "start", family)
    training = train_serac(editor, facts(), tmp_path / "editor", settings(), counterfactual=start, held_out=0.25)
    assert before.differences(editor.model) == []
    assert training.records == 9 and training.validation == 3
    assert [each["iteration"] for each in training.outcome.history] == [2.0, 4.0]
    made = SeracEditor.load(tmp_path / "editor")
    assert made.counterfactual is not None
    started = dict(tiny(family, seed=10)[0].named_parameters())
    moved = [n for n, p in made.counterfactual.model.named_parameters() if not torch.equal(p, started[n])]
    assert len(moved) > len(started) / 2
    user = editor_on(family, tmp_path / "editor")
    user.edit(facts()[:3], evaluate=False)
    assert len(user.stack.patches) == 1


@pytest.mark.parametrize(
    "over",
    [{"freeze_cntr": True}, {"objective": "easyedit"}, {"objective": "easyedit", "freeze_cntr": True},
     {"form": "cross_attend", "use_all_negatives": True}, {"hard_negatives": 0.5, "measure": "cos", "scale": 8.0}],
)  # fmt: skip
def test_other_forms_train_too(over: dict[str, Any], tmp_path: Path) -> None:
    start = None if over.get("freeze_cntr") else saved_model(tmp_path / "start", "gpt2")
    hparams = settings(**over)
    editor = trainee()
    before = Snapshot(editor.model)
    train_serac(editor, facts(), tmp_path / "editor", hparams, classifier="scratch", counterfactual=start)
    assert before.differences(editor.model) == []
    scope = SeracEditor.load(tmp_path / "editor").scope
    assert scope.freeze_cntr == hparams.freeze_cntr
    assert scope.cross_attend == (hparams.form == "cross_attend")


def test_the_same_training_makes_the_same_bytes_also_when_resumed(tmp_path: Path) -> None:
    from kedit_core.patches import path_digest

    start = saved_model(tmp_path / "start", "gpt2")
    train_serac(trainee(seed=3), facts(), tmp_path / "whole", settings(), counterfactual=start)
    half = settings(iterations=2)
    train_serac(trainee(seed=3), facts(), tmp_path / "two", half, counterfactual=start)
    train_serac(trainee(seed=3), facts(), tmp_path / "two", settings(), counterfactual=start, resume=True)
    for part in ("classifier", "counterfactual"):
        assert path_digest(tmp_path / "two" / part) == path_digest(tmp_path / "whole" / part)
    whole, two = (read_state(tmp_path / name) for name in ("whole", "two"))
    assert content_digest(whole) == content_digest(two)
    assert str(tmp_path) not in (tmp_path / "whole" / "state.json").read_text()
    assert set(whole["origin"]["started_from"]) == {"classifier", "counterfactual"}
    with pytest.raises(InputError, match="differs in origin, seed"):
        train_serac(trainee(seed=4), facts(), tmp_path / "two", settings(), counterfactual=start, resume=True)
    # validations on other records cannot be compared
    with pytest.raises(InputError, match="differs in hparams"):
        other = settings(val_items=1)
        train_serac(trainee(seed=3), facts(), tmp_path / "two", other, counterfactual=start, resume=True)


def test_bad_input_is_refused_before_training(tmp_path: Path) -> None:
    editor = trainee()
    with pytest.raises(InputError, match="freeze_cntr"):
        train_serac(editor, facts(), tmp_path / "e", settings(), classifier="scratch")
    frozen = settings(freeze_cntr=True)
    with pytest.raises(InputError, match="f1"):
        train_serac(editor, facts(), tmp_path / "e", frozen, classifier="scratch", validation=facts()[1:3])
    long = [*facts()[:4], evolve(facts()[4], prompt="town " * 120)]
    with pytest.raises(InputError, match="leave it out"):
        train_serac(editor, long, tmp_path / "e", frozen, classifier="scratch")
    with pytest.raises(InputError, match=r"config\.json"):
        train_serac(editor, facts(), tmp_path / "e", frozen, classifier=tmp_path)
    with pytest.raises(InputError, match="safetensors"):
        (tmp_path / "pickled").mkdir()
        (tmp_path / "pickled" / "config.json").write_text('{"model_type": "distilbert"}')
        (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
        train_serac(editor, facts(), tmp_path / "e", frozen, classifier=tmp_path / "pickled")
    assert not (tmp_path / "e").exists()


def test_a_classifier_of_another_kind_from_a_folder(tmp_path: Path) -> None:
    """Any encoder folder: BERT (whose pooler is left out), and a language model's body with mean pooling."""
    from transformers import BertConfig, BertModel

    from kedit_methods_memory.serac.training.scratch import scratch_encoder

    _, tokenizer = scratch_encoder(tiny("gpt2")[1], width=16, layers=1, heads=2, seed=0, classes=False)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    saved_model(tmp_path / "lm", "llama")
    for name, pooling in (("bert", "first"), ("lm", "mean")):
        hparams = settings(freeze_cntr=True)
        train_serac(trainee(), facts(), tmp_path / f"e-{name}", hparams, classifier=tmp_path / name)
        made = SeracEditor.load(tmp_path / f"e-{name}")
        assert made.scope.pooling == pooling
        assert not any("pooler" in key for key in made.classifier.model.state_dict())
        again = SeracEditor.load(tmp_path / f"e-{name}")
        assert torch.equal(made.classifier.vectors(["Mira lives"]), again.classifier.vectors(["Mira lives"]))


@pytest.mark.slow
def test_a_toy_run_learns_scope_and_answers(tmp_path: Path) -> None:
    """The trainer's check 2: held-out facts are told apart, and the answer's loss falls below half."""
    hparams = settings(
        iterations=400, val_interval=100, accumulate=1, batch_size=12, scratch_width=64, lr=3e-3,
        use_all_negatives=True, alternatives_from="relation",
    )  # fmt: skip
    start = saved_model(tmp_path / "start", "gpt2")
    training = train_serac(
        trainee(), facts(120), tmp_path / "e", hparams, classifier="scratch", counterfactual=start, held_out=0.2
    )
    best = next(e for e in training.outcome.history if e["iteration"] == training.outcome.best_iteration)
    assert best["scope/inside"] > 0.95 and best["scope/outside"] > 0.95
    step = a_step()
    assert best["loss/edit"] < 0.5 * float(step(a_batch()).losses["edit"].detach())


@pytest.mark.slow
def test_scope_is_learnt_on_factworld(tmp_path: Path) -> None:
    """A small encoder from scratch, 200 cases: it tells rewordings of other cases from their neighbours."""
    from kedit_factworld.plugin import edit_cases
    from kedit_methods_memory.serac.memory import Memory

    cases = edit_cases()
    hparams = SeracTrainingHyperParams(
        freeze_cntr=True, key="label_free", iterations=400, val_interval=50, accumulate=1, batch_size=16,
        lr_classifier=2e-3, clip=1.0, hard_negatives=0.5, hard_near=0, hard_far=50, scratch_width=64,
    )  # fmt: skip
    editor = Editor.from_pretrained("factworld:llama", "serac")
    train_serac(editor, cases[:200], tmp_path / "e", hparams, classifier="scratch", held_out=0.15)
    made = SeracEditor.load(tmp_path / "e")
    inside: list[bool] = []
    outside: list[bool] = []
    for case in cases[200:]:  # before training all of both are in scope
        memory = Memory.empty(made, 0.5, False).adding([case], made)
        probes = [probe.prompt for group in case.locality.values() for probe in group]
        inside += [entry is not None for entry in memory.decide(case.rephrase_prompts, made)]
        outside += [entry is not None for entry in memory.decide(probes, made)]
    assert sum(inside) / len(inside) > 0.65
    assert sum(outside) / len(outside) < 0.1


# ---------------------------------------------------------------- the command
def test_the_command_trains_an_editor_that_kedit_edit_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_core.cli.root import kedit

    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    options = (
        "-p freeze_cntr=true -p iterations=4 -p val_interval=2 -p batch_size=4 -p accumulate=1 -p scratch_width=16"
        " -p hard_negatives=0 --option classifier=scratch"
    )
    trained = f"train factworld:llama -m serac --requests factworld --limit 30 {options} -o editor"
    done = run.invoke(kedit, trained.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "--editor editor" in done.output
    line = "edit factworld:llama -m serac --editor editor --requests factworld --limit 2 --no-evaluate -o p"
    done = run.invoke(kedit, line.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    resumed = run.invoke(kedit, [*trained.split(), "--resume"])
    assert resumed.exit_code == 0, resumed.output
