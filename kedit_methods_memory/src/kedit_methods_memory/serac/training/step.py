"""One micro-batch of SERAC's training: texts to losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, Pair
from kedit_core.training import Stepped
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.checkpoint import SeracEditor
from kedit_methods_memory.serac.training.losses import divergence, mixture, scope_loss, token_nll
from kedit_methods_memory.serac.training.records import Record, ScopeBatch

_IN_SCOPE = 0.5


class SeracStep:
    """Losses of a micro-batch, and the parameters they are for.

    Args:
        editor: whose models are trained in place.
        answering: tools of the counterfactual model; of the base when that is it (``freeze_cntr``).
        base: tools of the base; needed for objective ``easyedit`` only.
        hparams: of the training.

    Raises InputError when the soft mixture is asked for and the two models have other tokens.
    """

    def __init__(
        self, editor: SeracEditor, answering: ForwardTools, base: ForwardTools, hparams: SeracTrainingHyperParams
    ) -> None:
        self.editor, self.answering, self.base, self.hparams = editor, answering, base, hparams
        self.trains_answers = editor.counterfactual is not None
        if hparams.objective == "easyedit" and not _same_tokens(answering, base):
            raise InputError(
                "objective easyedit mixes the distributions of base and counterfactual model, and these have other "
                "tokens; take a counterfactual model with the base's tokenizer, or objective supervised"
            )

    def __call__(self, batch: ScopeBatch) -> Stepped:
        """As the objective says."""
        self.editor.classifier.forget()
        return self._easyedit(batch) if self.hparams.objective == "easyedit" else self._supervised(batch)

    def parameters(self) -> dict[str, Tensor]:
        """name -> parameter of all that is trained; the others' flags are put out."""
        found = dict(_chosen("classifier", self.editor.classifier.model, self.hparams.trainable_blocks))
        if self.editor.counterfactual is not None:
            found |= _chosen("counterfactual", self.editor.counterfactual.model, self.hparams.trainable_blocks)
        return found

    def rates(self) -> dict[str, float]:
        """name -> learning rate, for :meth:`parameters`."""
        special = self.hparams.lr_classifier
        of_classifier = self.hparams.lr if special is None else special
        return {
            name: of_classifier if name.startswith("classifier.") else self.hparams.lr for name in self.parameters()
        }

    def check_lengths(self, records: Sequence[Record]) -> None:
        """InputError for a record that the classifier would cut, or the counterfactual model has no positions for."""
        limit = self.answering.view.row_limit
        for record in records:
            answer = max(record.answers, key=len)
            key = self.editor.scope.key(record.prompt, answer)
            prompt = max((text for text, _ in record.inside), key=len)
            classifier = self.editor.classifier
            classifier.check_length(classifier.paired(key, prompt) if self.editor.scope.cross_attend else key)
            pair = self.answering.boundary.pair(self.editor.scope.before(record.prompt, answer) + prompt, answer)
            if limit is not None and len(pair.prompt_ids) + len(pair.target_ids) > limit:
                raise InputError(
                    f"the record {record.id!r} has {len(pair.prompt_ids)} tokens with its context, and the "
                    f"counterfactual model has {limit} positions; leave it out"
                )

    # ------------------------------------------------------------------ the two objectives
    def _supervised(self, batch: ScopeBatch) -> Stepped:
        inside, outside = self._similarities(batch)
        loss = scope_loss(inside, outside)
        losses, total = {"loc": loss}, self.hparams.c_loc * loss
        values = {
            "scope/inside": _count(inside.exp() > _IN_SCOPE),
            "scope/outside": _count(outside.exp() <= _IN_SCOPE),
            "loss/loc": (float(loss.detach()), 1.0),
        }
        if self.trains_answers:
            pairs = self._with_context(batch, batch.edit_outer, [entry for _, entry in batch.pos_pairs])
            logprobs = _log_softmax(target_logits(self.answering, pairs, grad=torch.is_grad_enabled()))
            losses["edit"], more = _answered(logprobs, pairs)
            total, values = total + self.hparams.c_edit * losses["edit"], {**values, **more}
        return Stepped(total=total, losses=losses, values={**values, "loss/total": (float(total.detach()), 1.0)})

    def _easyedit(self, batch: ScopeBatch) -> Stepped:
        """The mixture's loss on the edit's own prompt, and its divergence from the base out of scope."""
        classifier, grad = self.editor.classifier, torch.is_grad_enabled()
        entries = classifier.embed([self.editor.scope.key(*edit) for edit in batch.edit_inner])
        prompts = [prompt for prompt, _ in batch.edit_inner]
        queries = classifier.embed([*prompts, *batch.loc])
        similarity, nearest = classifier.metric.log_similarities(queries, entries).max(dim=1)
        similarity, count = similarity.exp(), len(prompts)

        def mixed(asked: Sequence[tuple[str, str]], pairs: Sequence[Pair], rows: slice) -> tuple[Tensor, Tensor]:
            base = target_logits(self.base, pairs, grad=False)
            with_context = self._with_context(batch, asked, nearest[rows].tolist())
            # one target's ids for both, whatever the context did to them
            same = [Pair(own.prompt_ids, pair.target_ids) for own, pair in zip(with_context, pairs, strict=True)]
            other = target_logits(self.answering, same, grad=grad and self.trains_answers)
            weights = similarity[rows].repeat_interleave(
                torch.tensor([len(p.target_ids) for p in pairs]).to(base.device)
            )
            return _log_softmax(base), mixture(base, other, weights)

        pairs = [self.base.boundary.pair(*edit) for edit in batch.edit_inner]
        _, edited = mixed(batch.edit_inner, pairs, slice(0, count))
        loss, values = _answered(edited, pairs)
        # the next-token distribution after a prompt out of scope; which id stands for the target is of no matter
        ends = [Pair(self.base.boundary.prompt(text).ids, (self.base.boundary.pad_id,)) for text in batch.loc]
        before, after = mixed([(text, "") for text in batch.loc], ends, slice(count, None))
        apart = divergence(before, after)
        total = self.hparams.c_edit * loss + self.hparams.c_loc * apart
        values = {
            **values,
            "scope/inside": _count(similarity[:count] > _IN_SCOPE),
            "scope/outside": _count(similarity[count:] <= _IN_SCOPE),
            "loss/loc": (float(apart.detach()), 1.0),
            "loss/total": (float(total.detach()), 1.0),
        }
        return Stepped(total=total, losses={"edit": loss, "loc": apart}, values=values)

    # ------------------------------------------------------------------ parts
    def _similarities(self, batch: ScopeBatch) -> tuple[Tensor, Tensor]:
        """Log-similarities of the positive pairs, and of prompts out of scope and entries."""
        classifier, scope = self.editor.classifier, self.editor.scope
        keys = [scope.key(*edit) for edit in batch.edit_inner]
        prompts = [prompt for prompt, _ in batch.edit_outer]
        apart = self._apart(batch)
        if scope.cross_attend:
            pairs = [(keys[entry], prompts[row]) for row, entry in batch.pos_pairs]
            pairs += [(keys[entry], batch.loc[row]) for row, entry in apart]
            found = classifier.pair_log_similarities([key for key, _ in pairs], [query for _, query in pairs])
            return found[: len(batch.pos_pairs)], found[len(batch.pos_pairs) :]
        vectors = classifier.embed([*keys, *prompts, *batch.loc])
        entries, inner, outer = torch.split(vectors, [len(keys), len(prompts), len(batch.loc)])
        positive = torch.tensor(batch.pos_pairs)
        negative = torch.tensor(apart)
        inside = classifier.metric.log_similarities(inner, entries)[positive[:, 0], positive[:, 1]]
        outside = classifier.metric.log_similarities(outer, entries)[negative[:, 0], negative[:, 1]]
        return inside, outside

    def _apart(self, batch: ScopeBatch) -> list[tuple[int, int]]:
        """(prompt out of scope, entry): each prompt and its own entry, or with all entries of other records."""
        if not self.hparams.use_all_negatives:
            return [(row, row) for row in range(len(batch.loc))]
        return [
            (row, entry)
            for row, of in enumerate(batch.loc_ids)
            for entry, record in enumerate(batch.ids)
            # another record's probe may be about any entry: of these only its own is known to be apart
            if (row == entry if of is None else of != record and batch.loc[row] not in batch.prompts_of(entry))
        ]

    def _with_context(self, batch: ScopeBatch, asked: Sequence[tuple[str, str]], entries: Sequence[int]) -> list[Pair]:
        """Prompts and answers as the counterfactual model reads them, with the texts of these entries before them."""
        boundary, scope = self.answering.boundary, self.editor.scope
        texts = [
            scope.before(*batch.edit_inner[entry]) + prompt for (prompt, _), entry in zip(asked, entries, strict=True)
        ]
        return [
            boundary.pair(text, answer) if answer else Pair(boundary.prompt(text).ids, (boundary.pad_id,))
            for text, (_, answer) in zip(texts, asked, strict=True)
        ]


def target_logits(tools: ForwardTools, pairs: Sequence[Pair], *, grad: bool) -> Tensor:
    """Logits ``[target tokens of all pairs, vocabulary]`` before each target token, the pairs one batch.

    ``grad`` keeps the graph in parameters that ask for gradients.
    """
    seq2seq = tools.view.is_encoder_decoder
    rows = [pair.prompt_ids if seq2seq else pair.prompt_ids + pair.target_ids[:-1] for pair in pairs]
    batch = tools.batch(
        rows,
        targets=[pair.target_ids for pair in pairs],
        prompt_lengths=[len(pair.prompt_ids) for pair in pairs],
    )
    starts = [0] * len(pairs) if seq2seq or batch.prompt_ends is None else batch.prompt_ends.tolist()
    cells = [(row, starts[row] + t) for row, pair in enumerate(pairs) for t in range(len(pair.target_ids))]
    return cast(Tensor, tools.run(batch, logits_at=torch.tensor(cells), grad=grad).logits)


def _answered(logprobs: Tensor, pairs: Sequence[Pair]) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """The token loss, and its measurements: the loss by token, and the share of pairs whose every token comes first."""
    targets = torch.tensor([token for pair in pairs for token in pair.target_ids], device=logprobs.device)
    counts = [len(pair.target_ids) for pair in pairs]
    loss = token_nll(logprobs, targets)
    exact = [bool(part.all()) for part in torch.split(logprobs.argmax(dim=-1) == targets, counts)]
    tokens = float(sum(counts))
    return loss, {
        "loss/edit": (float(loss.detach()) * tokens, tokens),
        "edit/acc": (float(sum(exact)), float(len(exact))),
    }


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)


def _count(hits: Tensor) -> tuple[float, float]:
    return float(hits.sum()), float(hits.numel())


def _same_tokens(one: ForwardTools, other: ForwardTools) -> bool:
    if one is other:
        return True
    alike = one.view.vocab_size == other.view.vocab_size
    return alike and one.boundary.tokenizer.get_vocab() == other.boundary.tokenizer.get_vocab()


def _chosen(name: str, model: nn.Module, blocks: int | None) -> Mapping[str, Tensor]:
    """Parameters of a model that are trained: all, or its last ``blocks`` blocks and what comes after them."""
    wanted = dict(model.named_parameters())
    if blocks is not None:
        lists = {path: each for path, each in model.named_modules() if isinstance(each, nn.ModuleList)}
        # of stacks of one length (an encoder's and a decoder's) the last
        path = max(reversed(lists), key=lambda each: len(lists[each]), default="")
        kept = range(max(0, len(lists[path]) - blocks), len(lists[path])) if path else range(0)
        stack = [name for name in wanted if path and name.startswith(f"{path}.")]
        above = list(wanted).index(stack[-1]) + 1 if stack else 0
        last = {f"{path}.{index}." for index in kept}
        embedded = {id(p) for each in model.modules() if isinstance(each, nn.Embedding) for p in each.parameters()}
        wanted = {
            key: p
            for place, (key, p) in enumerate(wanted.items())
            if (place >= above or any(key.startswith(start) for start in last)) and id(p) not in embedded
        }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    return {f"{name}.{key}": parameter for key, parameter in wanted.items()}
