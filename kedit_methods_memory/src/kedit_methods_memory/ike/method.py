"""IKE: facts put before prompts, with demonstrations of what to do with them (Zheng et al. 2023, arXiv 2305.12740).

No weight changes. The patch is a router: at each prompt the nearest fact of a memory is chosen, and its demonstrations,
its copy and the head of the query block are read before the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, cast

from attrs import evolve

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, PrivateRequests, Requirement, RouterOperation
from kedit_core.requests import EditRequest
from kedit_methods_memory import encoders
from kedit_methods_memory.encoders import Encoder, load_encoder
from kedit_methods_memory.hparams.ike import IkeContextHyperParams, IkeHyperParams
from kedit_methods_memory.ike import corpus as corpora
from kedit_methods_memory.ike.building import Building
from kedit_methods_memory.ike.corpus import Corpus, RecordedRecords, corpus_for
from kedit_methods_memory.ike.memory import Memory
from kedit_methods_memory.ike.retrieval import index_of

_SAMPLE = 16  # texts that are encoded to tell how long all take


class Ike:
    """The method ``ike``: retrieval and demonstrations (and its modes ``easyedit``, ``ice`` and ``format``).

    Memory beside the model: the encoder, and 4 bytes for each number of the vectors of all demonstrations of the
    corpus (13 vectors of 384 for a CounterFact record: 20 kB).
    """

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: IkeContextHyperParams
    ) -> EditPatch:
        """The memory of the patch before, and these requests' facts."""
        building = _building(context, hparams)
        before = context.previous
        memory = building.extended(None if before is None else memory_of(before), requests)
        _warn(context, building, memory, len(requests))
        return context.new_patch(
            [memory.operation()],
            [*_requests_of(before), *requests],
            requires=_required(memory, building),
        )

    @hookimpl
    def drop_request(self, patch: EditPatch, request_id: str) -> EditPatch | None:
        """The patch without a fact; what stands before the prompts of the others stays the same text."""
        memory = memory_of(patch).without(request_id)
        memory = evolve(memory, records=RecordedRecords(memory.records).only(memory.shown()))
        kept = [request.fact for request in _requests_of(patch) if request.id != request_id]
        requires = [need for need in patch.requires if need.role != encoders.ROLE or memory.asks_encoder]
        return evolve(patch, operations=[memory.operation()], requests=kept, requires=requires)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: IkeContextHyperParams
    ) -> Mapping[str, Any]:
        """No place of the model; seconds from encoding a few texts, memory and size from counting."""
        building = _building(context, hparams, with_index=False)
        corpus = building.corpus.every_text() if building.corpus is not None else []
        texts = [*corpus, *(request.prompt for request in requests)]
        sample = texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]
        started = perf_counter()
        width = building.encoder.encode(sample).shape[1]
        seconds = (perf_counter() - started) / len(sample)
        shown = min(building.hparams.k, len(building.corpus.records)) if building.corpus is not None else 0
        inline = building.hparams.store_demonstrations == "inline"
        of_text = round(sum(map(len, corpus)) / len(corpus)) if corpus and inline else 0
        return {
            "places": ["(what is read before each prompt)"],
            "seconds": seconds * (len(texts) + len(requests)),
            "memory_bytes": 4 * width * len(texts),
            "patch_bytes": len(requests) * (4 * width + shown * (15 + of_text)),
            "notes": [
                *(
                    [f"up to {shown} demonstrations before each prompt, as far as the window holds them"]
                    if shown
                    else []
                ),
                "no weight changes: Editor.generate and kedit's evaluation see this edit, a bare call of the model "
                "does not",
            ],
        }


class IkeContext(Ike):
    """The method ``ike_context``: the same retrieval, and the fact alone before the prompt.

    Memory beside the model: the encoder, and one vector for each fact.
    """


def memory_of(patch: EditPatch) -> Memory:
    """The memory that a patch of these methods holds. Raises InputError for another patch."""
    found = [each for each in patch.operations if isinstance(each, RouterOperation)]
    if len(found) != 1 or len(patch.operations) != 1:
        raise InputError(f"patch {patch.id[:12]} of {patch.method.name} holds no memory of facts put before prompts")
    return Memory.of(found[0])


def _building(context: EditContext, given: IkeContextHyperParams, with_index: bool = True) -> Building:
    """All that facts are made with. Encoder, corpus and index are made once for an Editor."""
    hparams = _full(given)
    if hparams.store_demonstrations == "by_hash" and hparams.mode != "ice" and corpora.ROLE not in context.resources:
        raise InputError(
            "demonstrations are stored by the hash of their file, and none was given; give it with "
            f"--with {corpora.ROLE}=FILE, or set store_demonstrations=inline"
        )
    encoder = _encoder(context, hparams)
    building = Building(
        hparams=hparams,
        encoder=encoder,
        corpus=_corpus(context, hparams) if hparams.mode != "ice" else None,
        boundary=context.tokens,
        window=_window(context, hparams),
        seed=context.seed,
        edited=tuple(context.requests),
    )
    if building.corpus is None or not with_index:
        return building
    corpus, blank_line = building.corpus, hparams.mode == "easyedit"
    key = ("ike", "index", corpus.sha256, hparams.neighbours, hparams.clean_paraphrases, blank_line, encoder.identity)
    index = context.remember(key, lambda: index_of(corpus, encoder, blank_line, context.cache))
    return evolve(building, index=index)


def _full(hparams: IkeContextHyperParams) -> IkeHyperParams:
    """The settings as IKE's; those of ``ike_context`` are its mode ``ice``."""
    return hparams if isinstance(hparams, IkeHyperParams) else IkeHyperParams(**hparams.to_dict(), mode="ice")


def _encoder(context: EditContext, hparams: IkeHyperParams) -> Encoder:
    folder = context.resource(encoders.ROLE) if encoders.ROLE in context.resources else None
    name, revision = hparams.encoder, hparams.encoder_revision
    device = context.forward.device
    made: Encoder = context.remember(
        ("ike", "encoder", name, revision, folder), lambda: load_encoder(name, revision, folder, device)
    )
    return made


def _corpus(context: EditContext, hparams: IkeHyperParams) -> Corpus:
    source = context.resource(corpora.ROLE) if corpora.ROLE in context.resources else context.options.get(corpora.ROLE)
    # what was given in memory may change in place, so only names and files are remembered
    named = str(source) if isinstance(source, str) or hasattr(source, "__fspath__") else None
    key = ("ike", "corpus", named, hparams.neighbours, hparams.clean_paraphrases)
    if source is not None and named is None:
        return corpus_for(context, hparams.neighbours, hparams.clean_paraphrases)
    return context.remember(key, lambda: corpus_for(context, hparams.neighbours, hparams.clean_paraphrases))


def _window(context: EditContext, hparams: IkeHyperParams) -> int | None:
    limits = [each for each in (hparams.window, context.adapter.row_limit) if each is not None]
    return min(limits, default=None)


def _required(memory: Memory, building: Building) -> list[Requirement]:
    """What the patch needs beside itself: a folder's encoder where prompts are compared, the file that it hashes."""
    needs = []
    if memory.asks_encoder and (encoder := building.encoder.identity.requirement) is not None:
        needs.append(encoder)
    if building.corpus is not None and building.hparams.store_demonstrations == "by_hash":
        needs.append(Requirement(role=corpora.ROLE, sha256=building.corpus.sha256))
    return needs


def _requests_of(patch: EditPatch | None) -> list[EditRequest]:
    if patch is None or isinstance(patch.requests, PrivateRequests):
        return []
    spans = [(fact, fact.get("subject_span")) for fact in patch.requests]
    return [EditRequest(**{**fact, "subject_span": None if span is None else tuple(span)}) for fact, span in spans]


def _warn(context: EditContext, building: Building, memory: Memory, new: int) -> None:
    if building.corpus is None:
        return
    if not building.corpus.records:
        context.warn(
            "no_demonstrations", 0.0, "give some with --with demonstrations=FILE",
            "there are no demonstrations: the fact alone is put before prompts, as ike_context does",
        )  # fmt: skip
        return
    facts = memory.facts[-new:]
    drawn = min(len(fact.drawn) for fact in facts)
    if drawn < building.hparams.k:
        context.warn(
            "few_demonstrations", float(drawn), "give more demonstrations, or set k lower",
            f"only {drawn} of {building.hparams.k} demonstrations could be had",
        )  # fmt: skip
    used = min(memory.used(fact, fact.prompt)[0] for fact in facts)
    if used < drawn:
        context.warn(
            "demonstrations_cut", float(used), "set k or answer_tokens lower, or take a model with more positions",
            f"the window of {cast(int, memory.window)} tokens holds {used} of {drawn} demonstrations before a prompt",
        )  # fmt: skip
