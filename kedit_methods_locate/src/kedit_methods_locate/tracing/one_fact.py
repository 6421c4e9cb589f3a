"""Causal tracing: which states carry the recall of a fact (Meng et al. 2022, arXiv 2202.05262, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kedit_core.editing import EditContext
from kedit_core.editing.progress import Step, silent
from kedit_core.errors import InputError, MethodError
from kedit_core.forward import ForwardTools, Pair, score_pairs
from kedit_core.requests import shortened
from kedit_methods_locate.stats import Corpus
from kedit_methods_locate.tracing.cells import Tables, kinds_of, sites_of
from kedit_methods_locate.tracing.facts import Fact, TracedPrompt, traced_prompt
from kedit_methods_locate.tracing.noise import Noise, resolve_noise
from kedit_methods_locate.tracing.record import Trace
from kedit_methods_locate.tracing.runs import Clean, corrupted_runs, read_clean
from kedit_methods_locate.tracing.settings import TraceSettings

_WEAK = 0.1  # of the clean probability


class UnknownFactError(MethodError):
    """The model does not give the expected answer, so there is no recall to trace.

    Attributes: expected, found — the two answers' texts.
    """

    def __init__(self, prompt: str, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        super().__init__(
            f"the model completes {prompt!r} with {found!r}, not with {expected!r}, so there is no recall of that to "
            "trace; leave the answer out to trace what it says"
        )


@frozen
class Skipped:
    """A fact that was not traced, and why."""

    fact: Fact
    reason: str


@frozen
class Traces:
    """Traces of the facts a model knows, with one noise for all, and the facts that were skipped."""

    traces: tuple[Trace, ...]
    skipped: tuple[Skipped, ...]
    noise: Noise


def trace(
    context: EditContext,
    fact: Fact,
    settings: TraceSettings | None = None,
    noise: Noise | None = None,
    corpus: Corpus | None = None,
) -> Trace:
    """Trace one fact; the model is left as found.

    Kinds share the clean and the corrupted run. Of the T x layers cells of each kind, those whose score is known are
    not run, and the others start at the first block they change, many in one pass (``context.memory_budget``).

    An encoder-decoder is traced in its encoder, and asked for the decoder's first token. The paper does not define
    this; it is experimental, and the context is warned.

    Args:
        context: of an Editor; its patches are part of the model that is traced.
        fact: what to trace. A multi-token answer must be what the model says, and its first token is traced.
        settings: kinds, noise, window; the defaults when None.
        noise: of :func:`resolve_noise`, to compare facts under one noise; that of this subject alone when None.
        corpus: text for the noise rules ``m`` and ``t``.

    Raises:
        UnknownFactError: the model does not give the expected answer.
        InputError: the subject does not stand in the prompt, or the prompt is too long.
        MethodError: probabilities are not finite, of the clean run or of a corrupted one.
    """
    settings = settings or TraceSettings()
    noise = noise or resolve_noise(context, settings, [fact.subject], corpus)
    total = float(len(kinds_of(settings)) * context.adapter.num_layers)
    with context.progress(f"tracing {fact.subject}", total=total) as step:
        return _traced(context, fact, settings, noise, step)


def trace_all(
    context: EditContext,
    facts: Sequence[Fact],
    settings: TraceSettings | None = None,
    corpus: Corpus | None = None,
) -> Traces:
    """Trace facts under one noise; those whose answer the model does not give are skipped.

    Raises:
        InputError: no fact, or one whose subject does not stand in its prompt, before any is traced.
        MethodError: probabilities are not finite.
    """
    settings = settings or TraceSettings()
    if not facts:
        raise InputError("there is no fact to trace; give at least one")
    for fact in facts:
        traced_prompt(context.tokens, fact, settings.occurrence)
    noise = resolve_noise(context, settings, [fact.subject for fact in facts], corpus)
    traces: list[Trace] = []
    skipped: list[Skipped] = []
    with context.progress(f"tracing {len(facts)} facts", total=float(len(facts))) as step:
        for fact in facts:
            try:
                with silent("one fact") as quiet:
                    traces.append(_traced(context, fact, settings, noise, quiet))
            except UnknownFactError as error:
                skipped.append(Skipped(fact, str(error)))
            step.advance()
    return Traces(tuple(traces), tuple(skipped), noise)


def _traced(context: EditContext, fact: Fact, settings: TraceSettings, noise: Noise, step: Step) -> Trace:
    """One fact under a given noise; ``step`` is advanced by one for each layer of each kind."""
    forward, layers = context.forward, context.adapter.num_layers
    prompt = traced_prompt(context.tokens, fact, settings.occurrence)
    limit = forward.view.row_limit
    if limit is not None and len(prompt.ids) > limit:
        raise InputError(f"the prompt has {len(prompt.ids)} tokens, and the model {limit} positions; shorten it")
    restored, severed = sites_of(settings, layers)
    clean = read_clean(forward, prompt.ids, restored)
    high_log = float(clean.logprobs[clean.answer])
    if not math.isfinite(high_log):
        raise MethodError(
            f"the model's own probabilities for {shortened(fact.prompt)} are not finite; run in float32 (--dtype "
            "float32), or take off an edit that has broken the model"
        )
    answer_tokens = _check_answer(forward, fact, clean)
    runs = corrupted_runs(
        forward,
        clean,
        prompt.corrupted,
        noise,
        clean.answer,
        capture=severed,
        memory_budget=context.memory_budget,
    )
    baseline = runs.baseline.double()
    _refuse_infinite(fact, baseline.numpy(force=True))
    tables = Tables(runs, prompt.corrupted[0], high_log)
    filled = {kind: tables.fill(kind, settings.width(layers), step) for kind in kinds_of(settings)}
    for each in filled.values():
        _refuse_infinite(fact, each.logprob)
    found = Trace(
        prompt=fact.prompt,
        subject=fact.subject,
        case_id=fact.case_id,
        tokens=prompt.tokens,
        special=prompt.special,
        subjects=tuple((each.start, each.stop) for each in prompt.subjects),
        answer_id=clean.answer,
        answer=_text(forward, clean.ids, [clean.answer]),
        answer_tokens=answer_tokens,
        high=math.exp(high_log),
        low=float(baseline.exp().mean()),
        high_log=high_log,
        low_log=float(baseline.mean()),
        scores={kind: each.probability for kind, each in filled.items()},
        log_scores={kind: each.logprob for kind, each in filled.items()},
        window=settings.width(layers),
        noise=noise.to_dict(),
        model={
            "name": context.model_name,
            "revision": context.revision,
            "architecture": type(context.model).__name__,
            "dtype": str(forward.model.dtype).removeprefix("torch."),
        },
    )
    _warn(context, found, prompt, settings)
    return found


def _refuse_infinite(fact: Fact, logprobs: NDArray[np.float64]) -> None:
    """MethodError for a run whose noise the model's numbers could not hold."""
    if not np.isfinite(logprobs).all():
        raise MethodError(
            f"the corrupted runs of {shortened(fact.prompt)} give probabilities that are not finite; lower --noise, or "
            "run in float32 (--dtype float32)"
        )


def _check_answer(forward: ForwardTools, fact: Fact, clean: Clean) -> int:
    """Tokens of the expected answer (1 when there is none). Raises UnknownFactError when the model says another."""
    if fact.answer is None:
        return 1
    target = forward.boundary.pair(fact.prompt, fact.answer).target_ids
    said = [clean.answer]
    if len(target) > 1 and said[0] == target[0]:
        pairs = [Pair(clean.ids, target)]
        [score] = score_pairs(forward.model, forward.view, forward.boundary, pairs, scope=forward.scope)
        said = score.predicted.tolist()
    text = _text(forward, clean.ids, said)
    # an answer may be another token with the same text (with or without a space in front)
    if tuple(said) != tuple(target) and text != fact.answer.strip():
        raise UnknownFactError(fact.prompt, fact.answer.strip(), text)
    return len(said)


def _text(forward: ForwardTools, prompt: Sequence[int], new: Sequence[int]) -> str:
    return forward.boundary.continuation(prompt, new).strip()


def _warn(context: EditContext, found: Trace, prompt: TracedPrompt, settings: TraceSettings) -> None:
    """Say what makes a trace doubtful, with the number and the remedy."""
    if context.adapter.is_encoder_decoder:
        context.warn(
            "encoder_traced",
            None,
            "read its effects as those of the encoder's states on the decoder's first token",
            "tracing an encoder-decoder is experimental: only its encoder is corrupted and restored",
        )
    if prompt.occurrences > len(prompt.subjects):
        context.warn(
            "subject_repeated",
            float(prompt.occurrences),
            "corrupt all of them with --occurrence all",
            f"{found.subject!r} stands {prompt.occurrences} times in {found.prompt!r} and is corrupted in one place, "
            "so the model can read it in another",
        )
    if found.total_effect < _WEAK * found.high:
        context.warn(
            "small_total_effect",
            found.total_effect,
            "give a stronger --noise, or check that the subject decides the answer",
            f"the corruption takes the answer of {found.prompt!r} from probability {found.high:.2g} only to "
            f"{found.low:.2g}, so there is nothing for a restored state to give back",
        )
