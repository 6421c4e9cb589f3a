"""From requests to a memory: demonstrations drawn, tokens counted, vectors made. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import evolve, frozen

from kedit_core.errors import InputError
from kedit_core.forward import TokenBoundary
from kedit_core.requests import EditRequest
from kedit_methods_memory.encoders import Encoder, each_alone
from kedit_methods_memory.hparams.ike import IkeHyperParams
from kedit_methods_memory.ike import texts
from kedit_methods_memory.ike.corpus import Corpus, recorded
from kedit_methods_memory.ike.counting import piece_tokens
from kedit_methods_memory.ike.memory import Fact, Memory
from kedit_methods_memory.ike.retrieval import Drawn, Index, drawn_for, ranked_items


@frozen(eq=False, kw_only=True)
class Building:
    """What facts are made with.

    Attributes:
        hparams: settings.
        encoder: makes vectors of prompts and demonstrations.
        corpus: demonstration records; None in the mode ``ice``.
        index: vectors of the corpus; None without one.
        boundary: the base's tokenizer; None (an endpoint's is not known) counts the most tokens a text may have.
        window: tokens that a prompt with its context may have; None for no limit.
        seed: of the edit.
        edited: requests that are no demonstrations.
    """

    hparams: IkeHyperParams
    encoder: Encoder
    corpus: Corpus | None = None
    index: Index | None = None
    boundary: TokenBoundary | None = None
    window: int | None = None
    seed: int = 0
    edited: Sequence[EditRequest] = ()

    def extended(self, before: Memory | None, requests: Sequence[EditRequest]) -> Memory:
        """The memory with further facts; what it holds already stays as it is.

        Raises InputError when a fact leaves no room in the window, or no record can serve as a demonstration.
        """
        source = self._source()
        if before is not None and before.demonstrations != source:
            raise InputError(
                "the demonstrations are not those that the facts before were given; put them back, or take the edit "
                "off first (Editor.restore)"
            )
        allowed = self._allowed(() if before is None else before.facts, requests)
        facts = [self._fact(request, allowed) for request in requests]
        embeddings = each_alone(self.encoder, [request.prompt for request in requests])
        if before is not None:
            before.check_width(embeddings)
            facts = [*before.facts, *facts]
            embeddings = torch.cat([before.embeddings, embeddings])
        made = Memory(
            mode=self.hparams.mode,
            facts=tuple(facts),
            embeddings=embeddings,
            tau=self.hparams.tau,
            window=self.window,
            answer_tokens=self.hparams.answer_tokens,
            encoder=self.encoder.identity.to_dict(),
            demonstrations=source,
            settings={} if self.corpus is None else self._settings(),
        )
        if self.corpus is None or self.hparams.store_demonstrations == "by_hash":
            return made
        mine = recorded(dict(enumerate(self.corpus.records)), {_key(each) for fact in facts for each in fact.drawn})
        return evolve(made, records=mine)

    def _allowed(self, old: Sequence[Fact], requests: Sequence[EditRequest]) -> list[int]:
        """Records that are no edited facts and have all that the types need."""
        if self.corpus is None or not self.corpus.records:
            return []
        # all of this call, whatever their order, and all before; what comes later cannot be known
        before = [EditRequest(prompt=fact.prompt, target_new=fact.target, case_id=fact.case_id) for fact in old]
        free = self.corpus.without([*self.edited, *requests, *before])
        if self.hparams.mode == "easyedit":
            usable = free
        else:
            needed = [kind for kind, part in enumerate(self.hparams.ratio) if part]
            usable = [i for i in free if all(self.corpus.records[i].variants(kind) for kind in needed)]
        if not usable:
            raise InputError(
                f"of {len(self.corpus.records)} demonstrations {len(self.corpus.records) - len(free)} are edited "
                "themselves, and the others have no rephrase or no locality probe with an answer; give other facts "
                "than those that are edited, with both, with --with demonstrations=FILE"
            )
        return usable

    def _fact(self, request: EditRequest, allowed: Sequence[int]) -> Fact:
        own = (request.prompt, request.target_new)
        drawn = self._drawn(request, allowed)
        shows_copy = bool(drawn) and self.hparams.mode == "ike"
        shown = (
            [] if self.corpus is None else [self.corpus.text(each.record, each.kind, each.variant) for each in drawn]
        )
        head = texts.query_head(self.hparams.mode, own)
        copy = texts.demonstration(own, own) if shows_copy else ""
        head_tokens, copy_tokens, *drawn_tokens = self._counts(shown, copy, head, request.prompt)
        fact = Fact(
            id=request.id,
            prompt=request.prompt,
            target=request.target_new,
            subject=request.subject,
            case_id=request.case_id,
            drawn=tuple(drawn),
            drawn_tokens=tuple(drawn_tokens),
            head_tokens=head_tokens,
            copy_tokens=copy_tokens,
        )
        self._check_room(request, head_tokens)
        return fact

    def _drawn(self, request: EditRequest, allowed: Sequence[int]) -> list[Drawn]:
        if self.corpus is None or self.index is None or not allowed:
            return []
        own = (request.prompt, request.target_new)
        if self.hparams.mode == "easyedit":
            return ranked_items(self.index, own, self.encoder, allowed)[: self.hparams.k]
        # of the fact alone: other facts change what is drawn only by not being allowed
        seed = self.seed ^ int(request.id, 16)
        return drawn_for(self.index, self.corpus, self.encoder, own, allowed, self.hparams.k, self.hparams.ratio, seed)

    def _counts(self, shown: Sequence[str], copy: str, head: str, prompt: str) -> list[int]:
        """Tokens of the head, the copy, and each demonstration, nearest first."""
        ordered = list(shown) if self.hparams.mode == "easyedit" else list(shown)[::-1]
        pieces = [*ordered, copy, head]
        if self.boundary is None:
            counts = [texts.most_tokens(piece) for piece in pieces]
        else:
            # special tokens stand at the beginning, whatever is left out after them
            counts = piece_tokens(self.boundary, [*pieces, prompt])[:-1]
            special = len(self.boundary.prompt(prompt).ids) - len(self._plain(prompt))
            first = next(i for i, piece in enumerate(pieces) if piece)
            counts[first] -= special
            counts[-1] += special
        of_shown = counts[:-2] if self.hparams.mode == "easyedit" else counts[:-2][::-1]
        return [counts[-1], counts[-2], *of_shown]

    def _plain(self, text: str) -> list[int]:
        if self.boundary is None:
            return []
        return list(self.boundary.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_room(self, request: EditRequest, head_tokens: int) -> None:
        wanted = head_tokens + self.hparams.answer_tokens
        if self.window is not None and wanted > self.window:
            raise InputError(
                f"the fact {request.case_id or request.id} takes {head_tokens} tokens before a prompt and "
                f"{self.hparams.answer_tokens} are kept for the answer, of {self.window} in all; shorten the fact, or "
                "set answer_tokens lower"
            )

    def _source(self) -> dict[str, object] | None:
        if self.corpus is None:
            return None
        return {
            "name": self.corpus.name,
            "sha256": self.corpus.sha256,
            "stored": self.hparams.store_demonstrations,
            "neighbours": list(self.hparams.neighbours),
            "clean_paraphrases": self.hparams.clean_paraphrases,
        }

    def _settings(self) -> dict[str, object]:
        return {"k": self.hparams.k, "ratio": list(self.hparams.ratio), "seed": self.seed}


def _key(drawn: Drawn) -> tuple[int, int, int]:
    return drawn.record, drawn.kind, drawn.variant
