"""Patches on the client's side of an endpoint: routers decide what is sent, and read answers are judged as anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from kedit_core.errors import InputError
from kedit_core.evaluation import (
    SENTENCE,
    Answers,
    Evaluation,
    FreeGeneration,
    StopRule,
    core_metrics,
    resolve_protocols,
)
from kedit_core.forward import PromptScope
from kedit_core.patches import Base, EditPatch, Route, RoutedModel, RouterKind, RouterOperation
from kedit_core.patches.baseline import check_requirements
from kedit_core.patches.entries import check_order, make_entry
from kedit_core.patches.routing import route_prompts
from kedit_core.plugins import METHODS, Catalogue
from kedit_core.requests import EditRequest, check_requests
from kedit_methods_memory.blackbox.answers import EndpointAnswers, answers_of
from kedit_methods_memory.blackbox.endpoint import Endpoint
from kedit_methods_memory.encoders import load_encoder
from kedit_methods_memory.hparams.ike import IkeHyperParams
from kedit_methods_memory.ike.building import Building
from kedit_methods_memory.ike.corpus import Corpus
from kedit_methods_memory.ike.retrieval import index_of

ARCHITECTURE = "Endpoint"
"""The base's architecture in patches that were made for an endpoint: the model behind it is not known."""


class EndpointEditor:
    """Router patches on a model that is somewhere else.

    Nothing on the server changes: patches act on what this object sends. The model behind the endpoint cannot be
    verified, so it is for the caller to know that a patch suits it.

    Args:
        endpoint: where the model is.
        catalogue: where kinds of operations come from; what is installed when None.
    """

    def __init__(self, endpoint: Endpoint, catalogue: Catalogue | None = None) -> None:
        self.endpoint = endpoint
        self._catalogue = catalogue or Catalogue.installed()
        self._on: list[tuple[EditPatch, tuple[RouterKind, ...]]] = []

    @property
    def patches(self) -> tuple[EditPatch, ...]:
        """Those that act, in order."""
        return tuple(patch for patch, _ in self._on)

    # ------------------------------------------------------------------ patches
    def apply(self, patch: EditPatch, resources: Mapping[str, Path | str] | None = None) -> None:
        """Have a patch act, on top of the others.

        Raises:
            InputError: it changes weights or modules, which nobody can from here.
            StackOrderError: it acts already, or its parents do not.
            RequirementError, UnknownNameError, PatchFormatError: as when it is put on a model.
        """
        beyond = sorted({each.type for each in patch.operations if not isinstance(each, RouterOperation)})
        if beyond:
            raise InputError(
                f"patch {patch.id[:12]} of {patch.method.name} holds {', '.join(beyond)}, which change the model "
                "itself; behind an endpoint only patches of routers act (ike, ike_context)"
            )
        check_order(patch, [one.id for one in self.patches])
        found = check_requirements(patch.requires, {role: Path(path) for role, path in (resources or {}).items()})

        def find(kind: str) -> type[Any]:
            return self._catalogue.operation_kind(kind, patch.method.distribution)

        entry = make_entry(patch, patch.operations, None, torch.nn.Identity(), PromptScope(), find, found)
        self._on.append((patch, entry.routers))

    def remove(self, patch: EditPatch) -> None:
        """Have a patch act no more. Raises InputError when it does not."""
        if all(one.id != patch.id for one in self.patches):
            raise InputError(f"patch {patch.id[:12]} does not act on this endpoint; see its patches")
        self._on = [each for each in self._on if each[0].id != patch.id]

    @contextmanager
    def applied(self, patch: EditPatch, resources: Mapping[str, Path | str] | None = None) -> Iterator[None]:
        """A patch for the length of a block."""
        self.apply(patch, resources)
        try:
            yield
        finally:
            self.remove(patch)

    def compute(
        self,
        requests: EditRequest | Sequence[EditRequest],
        hparams: Mapping[str, Any] | IkeHyperParams | None = None,
        *,
        demonstrations: Sequence[EditRequest] = (),
        encoder: Path | None = None,
        seed: int = 0,
    ) -> EditPatch:
        """An ``ike`` patch of facts, made without the model (with one, ``Editor(model, ..., method="ike")`` makes it).

        A window is in the setting ``window``, and texts count a token for each byte, as the tokenizer is not known.

        Args:
            hparams: settings of ``ike``.
            demonstrations: facts that are not edited; without any, the mode is ``ice``.
            encoder: folder of a sentence encoder, in place of the setting.

        Raises RequestError, HyperParamsError, InputError as the method does.
        """
        given = [requests] if isinstance(requests, EditRequest) else list(requests)
        check_requests(given)
        settings = hparams if isinstance(hparams, IkeHyperParams) else IkeHyperParams.from_dict(hparams or {})
        if settings.store_demonstrations != "inline":
            raise InputError("a patch for an endpoint holds its demonstrations; set store_demonstrations=inline")
        if not demonstrations:
            settings = IkeHyperParams.from_dict({**settings.to_dict(), "mode": "ice"})
        made_by = load_encoder(settings.encoder, settings.encoder_revision, encoder)
        corpus = None
        if settings.mode != "ice":
            corpus = Corpus.of(demonstrations, settings.neighbours, settings.clean_paraphrases)
        memory = Building(
            hparams=settings,
            encoder=made_by,
            corpus=corpus,
            index=None if corpus is None else index_of(corpus, made_by, settings.mode == "easyedit"),
            window=settings.window,
            seed=seed,
            edited=given,
        ).extended(None, given)
        folder = made_by.identity.requirement if memory.asks_encoder else None
        found = self._catalogue.find(METHODS, "ike")
        return EditPatch.build(
            method={"name": "ike", "distribution": found.distribution, "version": found.version or "0"},
            base=Base(architecture=ARCHITECTURE),
            operations=[memory.operation()],
            hparams=settings.to_dict(),
            seed=seed,
            parents=[one.id for one in self.patches],
            requires=[] if folder is None else [folder],
            requests=[request.fact for request in given],
        )

    # ------------------------------------------------------------------ reading
    def sent(self, prompts: Sequence[str]) -> list[str]:
        """What is sent for each prompt: its contexts and itself."""
        return [route.context + prompt for route, prompt in zip(self._routes(prompts), prompts, strict=True)]

    def generate(self, prompts: Sequence[str], max_tokens: int = 50, stop: Sequence[str] | None = None) -> list[str]:
        """What is written after each prompt, through every patch; a route's own model answers here. In order.

        Raises as :meth:`Endpoint.generate`.
        """
        routes = self._routes(prompts)
        texts = [route.context + prompt for route, prompt in zip(routes, prompts, strict=True)]
        away = [i for i, route in enumerate(routes) if route.model is None]
        found = dict(zip(away, self.endpoint.generate([texts[i] for i in away], max_tokens, stop), strict=True))
        here: dict[int, tuple[RoutedModel, list[int]]] = {}
        for i, route in enumerate(routes):
            if route.model is not None:
                here.setdefault(id(route.model), (route.model, []))[1].append(i)
        for routed, rows in here.values():
            found |= dict(zip(rows, answers_of(routed).raw_generate([texts[i] for i in rows], max_tokens), strict=True))
        return [found[i] for i in range(len(prompts))]

    def answer(self, prompts: Sequence[str], max_tokens: int = 50, rule: StopRule = SENTENCE) -> list[str]:
        """Answers as protocol ``generate`` reads them: cut where the sentence or the line ends."""
        return [self.endpoint.cut(rule, text) for text in self.generate(prompts, max_tokens)]

    def evaluate(
        self, requests: EditRequest | Sequence[EditRequest], protocols: Sequence[str] = ("generate",)
    ) -> Evaluation:
        """Measure the patches that act against the endpoint without them.

        Raises InputError for protocols that read more than written text.
        """
        given = [requests] if isinstance(requests, EditRequest) else list(requests)
        check_requests(given)
        if unfit := [each.name for each in resolve_protocols(protocols) if not isinstance(each, FreeGeneration)]:
            raise InputError(f"an endpoint gives texts alone, and {unfit[0]} reads token by token; take generate")
        base = EndpointAnswers(self.endpoint.generate, self.endpoint.cut)
        edited = EndpointAnswers(self.generate, self.endpoint.cut)
        scenario = "sequential" if len(self._on) > 1 else "batch"
        metrics = core_metrics(
            given,
            cast(Answers, base),
            cast(Answers, edited),
            protocols=protocols,
            scenario=scenario,
            way="client" if self._on else None,
        )
        manifest = {"endpoint_model": self.endpoint.model, "patches": [one.id for one in self.patches]}
        return Evaluation(metrics=metrics, manifest=manifest)

    def _routes(self, prompts: Sequence[str]) -> list[Route]:
        return route_prompts([router for _, routers in self._on for router in routers], prompts)
