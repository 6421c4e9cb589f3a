"""T-Patcher: one neuron for one mistake, beside the last MLP.

Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron" (ICLR 2023, arXiv 2301.09785). A fact that the
model gets right costs nothing; else each wrongly predicted token of the target (the first few) gets a neuron that is
trained to fire there and to stay silent on a memory of other texts. The model's weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import refuse_long
from kedit_core.editing.facts import facts_of, request_of
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, ModuleOperation, State
from kedit_core.requests import EditRequest
from kedit_methods_memory.beneath import requests_of
from kedit_methods_memory.corpus import corpus_of
from kedit_methods_memory.hparams.t_patcher import MemoryForm, TPatcherHyperParams
from kedit_methods_memory.t_patcher.guards import fires_on, seconds_of_step, warn_of_limit, warn_of_result
from kedit_methods_memory.t_patcher.memory import (
    Memories,
    batch_of,
    edited_before,
    examples_of,
    memories_for,
    row_of,
)
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.paths import path_for, steady_path
from kedit_methods_memory.t_patcher.place import LastMlp, activation_of
from kedit_methods_memory.t_patcher.records import carried, joined, operations_in, record_of, records_of
from kedit_methods_memory.t_patcher.states import Asked
from kedit_methods_memory.t_patcher.training import Example, Texts, train


class TPatcher:
    """The method ``t_patcher``: the new answer from a few neurons beside the last MLP.

    The requests of a call are learnt one after another, each on the model with the neurons of those before. What a
    patch holds grows with its facts: 4 n (2 d + 1) bytes for n neurons of width d, beside the facts themselves.

    Memory beside the model: 4 d bytes for each vector of the memory (``memory_size`` of them, and a quarter as many
    for validation with the usual share), about 16 bytes for each of these and neuron while training, and the logits of
    one target.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse a model, a corpus or an activation that cannot be used, and facts too long, before any work.

        Raises InputError; requests stay as they are.
        """
        if not isinstance(context.hparams, TPatcherHyperParams):
            return
        LastMlp.of(context.adapter)
        activation_of(context.adapter, context.hparams.activation)
        corpus_of(context)
        end = _end(context, context.hparams)
        refuse_long(context, requests, [len(row_of(context, request, end)[0].read) for request in requests])

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: TPatcherHyperParams
    ) -> EditPatch:
        """The neurons of these requests behind those of the rounds before."""
        place = LastMlp.of(context.adapter)
        activation = activation_of(context.adapter, hparams.activation)
        held, records = carried(context, activation)
        with context.provisional() as writer:
            for number, request in enumerate(requests):
                example = read_example(context, place, request, hparams)
                if not example.wrong:
                    records.append({"neurons": 0})
                    continue
                warn_of_limit(context, example, hparams)
                example = evolve(example, wrong=example.wrong[: hparams.max_neurons])
                memories = _memories(context, place, request, requests[:number], hparams)
                trained = train(context, example, _texts(context, place, memories, hparams), activation, hparams)
                writer.add([trained.neurons.operation(place.places)])
                right = _right(context, place, request, hparams)
                spread = fires_on(trained.neurons, memories)
                warn_of_result(context, right, spread)
                held.append(trained.neurons)
                records.append(record_of(example, trained, right, spread))
        before = requests_of(context.previous)
        operations = [joined(held).operation(place.places)] if held else []
        return context.new_patch(operations, [*before, *requests], state_config={"edits": records})

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """Take the request's neurons out: the model is then as if they had never been added, bit for bit.

        Neurons of later facts stay as they were trained, with the dropped ones beside them.
        """
        facts, records = facts_of(patch), records_of(patch)
        kept = [request_of(fact).id != request_id for fact in facts]
        rows = [stays for stays, record in zip(kept, records, strict=True) for _ in range(int(record["neurons"]))]
        operations: list[ModuleOperation] = []
        if any(rows):
            (operation,) = operations_in(patch)
            operations = [Neurons.of(operation).rows(torch.tensor(rows)).operation(operation.places)]
        edits = [record for stays, record in zip(kept, records, strict=True) if stays]
        return evolve(
            patch,
            operations=operations,
            state=State({**patch.state.config, "edits": edits}),
            requests=[fact for stays, fact in zip(kept, facts, strict=True) if stays],
        )

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: TPatcherHyperParams
    ) -> Mapping[str, Any]:
        """Where neurons will stand, how many there will be, and the time of all steps from a few tried ones."""
        place = LastMlp.of(context.adapter)
        examples = [read_example(context, place, request, hparams) for request in requests]
        counts = [min(len(example.wrong), hparams.max_neurons) for example in examples]
        wrong = [example for example, count in zip(examples, counts, strict=True) if count]
        seconds = seconds_of_step(context, wrong, hparams) if wrong else 0.0
        kept = int(hparams.memory_size / (1 - hparams.validation_share))
        size = 4 * sum(counts) * (2 * place.width + 1)
        source, _ = corpus_of(context)
        return {
            "places": list(place.places),
            "seconds": seconds * hparams.max_epochs * len(wrong),
            "memory_bytes": 4 * place.width * kept + 16 * hparams.memory_size * max(counts, default=0),
            "patch_bytes": size,
            "notes": [
                f"{len(wrong)} of {len(requests)} facts are wrong now and get {sum(counts)} neurons",
                f"at most {hparams.max_epochs} steps a fact, {seconds:.2g} s each; training usually ends after 150 to "
                "400 of them",
                f"the memory comes from {source}",
            ],
        }


def read_example(context: EditContext, place: LastMlp, request: EditRequest, hparams: TPatcherHyperParams) -> Example:
    """A fact as training takes it, with all the positions where the model as it stands is wrong."""
    row, target = row_of(context, request, _end(context, hparams))
    first = 0 if row.written else row.columns - len(target)
    cells = torch.tensor([(0, first + t) for t in range(len(target))])
    asked = Asked(batch_of(context.forward, [row]), cells)
    path = path_for(context, place, asked, hparams)
    clean = path if not hparams.dropout else steady_path(context, place, asked, hparams)
    with torch.no_grad():
        reading = clean.read(None)
    targets = torch.tensor(target, device=reading.logits.device)
    wrong = (reading.logits[0].argmax(-1) != targets).nonzero().flatten().tolist()
    return Example(path, targets, tuple(wrong), reading.query[0])


def _memories(
    context: EditContext,
    place: LastMlp,
    request: EditRequest,
    done: Sequence[EditRequest],
    hparams: TPatcherHyperParams,
) -> Memories:
    """The memory for one request: with what was edited before, without texts about its own subject."""
    memories = memories_for(context, place, hparams)
    subject = request.subject if hparams.spare_subject else None
    train_on, look_at = (part.sparing(subject) for part in (memories.train, memories.validation))
    if hparams.update_memory:
        others = [each for each in (*edited_before(context), *done) if each.prompt != request.prompt]
        more = examples_of(context, place, others)
        train_on, look_at = train_on.joined(more), look_at.joined(more)
    return Memories(train_on, look_at)


def _texts(
    context: EditContext, place: LastMlp, memories: Memories, hparams: TPatcherHyperParams
) -> tuple[Texts, Texts]:
    """As the objective takes them."""
    count = MemoryForm.parse(hparams.memory_loss).kl
    found = []
    for memory in (memories.train, memories.validation):
        samples = None
        if count is not None:
            path = steady_path(context, place, memory.asked(context.forward, count), hparams)
            with torch.no_grad():
                samples = (path, path.read(None).logits.flatten(0, 1))
        found.append(Texts(memory.vectors, samples))
    return found[0], found[1]


def _right(context: EditContext, place: LastMlp, request: EditRequest, hparams: TPatcherHyperParams) -> bool:
    """Whether the model itself, with the neurons on it, now gives the target."""
    return not read_example(context, place, request, evolve(hparams, dropout=False)).wrong


def _end(context: EditContext, hparams: TPatcherHyperParams) -> tuple[int, ...]:
    """The ids that every target ends with."""
    if not hparams.append_eos:
        return ()
    end = context.tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end-of-sequence token to append; set append_eos to false")
    return (int(end),)
