"""Protocols: what is read from a model for a probe, and how it is judged.

A protocol reads in batches (``read``) and judges one reading at a time (``success`` against the accepted answers,
``agreement`` of the edited model with the base). Numbers of different protocols are never mixed: each carries its tag.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from kedit_core.errors import DuplicateNameError, UnknownNameError
from kedit_core.evaluation import text as texts
from kedit_core.evaluation.tags import Tag
from kedit_core.evaluation.text import SENTENCE, WILD, StopRule

if TYPE_CHECKING:
    from kedit_core.contract import MetricInfo
    from kedit_core.evaluation.answers import Answers
    from kedit_core.evaluation.questions import TargetTokens
    from kedit_core.requests import Probe


@frozen(kw_only=True)
class Reading:
    """What a model says to one probe.

    Attributes:
        text: the answer, or the decoded argmax tokens.
        predicted, target: token ids at the target's positions; empty for a protocol that generates.
    """

    text: str
    predicted: tuple[int, ...] = ()
    target: tuple[int, ...] = ()


@frozen(kw_only=True)
class Judgement:
    """A score in 0..1, and the looser ones that go beside it for people who want to look."""

    score: float
    contain: bool | None = None
    f1: float | None = None


@frozen(kw_only=True)
class Protocol(ABC):
    """How answers are read and judged; subclass it for another way.

    Attributes:
        name: first part of metric keys, ``gen_free`` in ``gen_free.reliability``.
        mode, context, answer_source: the first three parts of the tag of specs: how it is read, what surrounds the
            prompt, how an answer is compared.
        aliases: further names it goes by.
        summary: one line for listings.
    """

    name: str
    mode: str
    context: str = "question-only"
    answer_source: str
    aliases: tuple[str, ...] = ()
    summary: str = ""

    @abstractmethod
    def read(self, answers: Answers, probes: Sequence[Probe]) -> list[Reading | None]:
        """One reading for each probe, all in few batches; None where this protocol cannot judge a probe."""

    @abstractmethod
    def success(self, probe: Probe, reading: Reading) -> Judgement | None:
        """Whether the reading is one of the probe's answers; None when the probe has none."""

    @abstractmethod
    def agreement(self, base: Reading, edited: Reading) -> Judgement:
        """Whether the edited model still says what the base says."""

    def tag(self, scenario: str, n: int, way: str | None) -> str:
        """The tag of a result of this protocol over ``n`` requests."""
        return str(
            Tag(mode=self.mode, context=self.context, answer_source=self.answer_source, scenario=scenario, n=n, way=way)
        )


def unchanged(prompt: str) -> str:
    """The prompt alone: the context ``question-only``."""
    return prompt


@frozen(kw_only=True)
class FreeGeneration(Protocol):
    """The prompt alone, greedy, a natural stop; the answer must be right as a whole (specs 2d).

    Success is the normalised exact match with any accepted answer; agreement is equality of the two strings.

    Attributes:
        rule: where an answer ends.
        max_new_tokens: an answer longer than this is cut.
        frame: what is put around a prompt; name it in ``context``.
    """

    rule: StopRule = SENTENCE
    max_new_tokens: int = 50
    frame: Callable[[str], str] = unchanged

    def read(self, answers: Answers, probes: Sequence[Probe]) -> list[Reading | None]:
        prompts = [self.frame(probe.prompt) for probe in probes]
        said = answers.generate(prompts, rule=self.rule, max_new_tokens=self.max_new_tokens)
        return [Reading(text=text) for text in said]

    def success(self, probe: Probe, reading: Reading) -> Judgement | None:
        if not probe.answers:
            return None
        return Judgement(
            score=float(texts.exact_match(reading.text, probe.answers)),
            contain=texts.contains(reading.text, probe.answers),
            f1=texts.best_f1(reading.text, probe.answers),
        )

    def agreement(self, base: Reading, edited: Reading) -> Judgement:
        return Judgement(score=float(base.text == edited.text), f1=texts.word_f1(base.text, edited.text))


def _reading(tokens: TargetTokens) -> Reading:
    return Reading(text=tokens.text, predicted=tokens.predicted, target=tokens.target)


@frozen(kw_only=True)
class TeacherForced(Protocol):
    """The prompt and the answer are fed, and the argmax before each answer token is compared with it (specs 2a, 2b).

    It shows the model its answer token by token, and the answer's length, so it promises more than real use keeps:
    report it beside free generation, never instead. Only the first answer (``target_new``, or the probe's first) is
    fed. Agreement compares the argmax tokens of base and edited model at the positions of the answer; a probe without
    an answer has no such positions and is left out.

    Attributes:
        whole: all tokens must be right (or agree) for 1, else 0.
    """

    whole: bool = False

    def read(self, answers: Answers, probes: Sequence[Probe]) -> list[Reading | None]:
        pairs = [(probe.prompt, probe.answers[0]) for probe in probes if probe.answers]
        found = iter(answers.target_tokens(pairs))
        return [_reading(next(found)) if probe.answers else None for probe in probes]

    def success(self, probe: Probe, reading: Reading) -> Judgement | None:
        return self._judge(reading.predicted, reading.target)

    def agreement(self, base: Reading, edited: Reading) -> Judgement:
        return self._judge(base.predicted, edited.predicted)

    def _judge(self, left: Sequence[int], right: Sequence[int]) -> Judgement:
        # a routed context may split the answer otherwise; the tokens that then have no partner count as wrong
        width = max(len(left), len(right))
        same = sum(a == b for a, b in zip(left, right, strict=False))
        share = same / width if width else 0.0
        return Judgement(score=float(share == 1.0) if self.whole else share)


@frozen(kw_only=True)
class BoundedGeneration(TeacherForced):
    """The prompt alone, greedy, exactly as many tokens as the answer has, compared one by one (specs 2c).

    Nothing is fed but the prompt, so one wrong token spoils those behind it; but the answer's length is given away, and
    what the model would say after it is not looked at. For comparing with numbers that were made that way.
    """

    def read(self, answers: Answers, probes: Sequence[Probe]) -> list[Reading | None]:
        pairs = [(probe.prompt, probe.answers[0]) for probe in probes if probe.answers]
        found = iter(answers.written_tokens(pairs))
        return [_reading(next(found)) if probe.answers else None for probe in probes]


GEN_FREE = FreeGeneration(
    name="gen_free",
    mode="gen_free",
    answer_source="EM",
    aliases=("generate",),
    summary="greedy generation with a natural stop, exact match",
)
GEN_WILD = FreeGeneration(
    name="gen_wild",
    mode="gen_wild",
    answer_source="EM",
    rule=WILD,
    summary="as gen_free, but every '.' ends the answer (for comparing with WILD's numbers)",
)
GEN_LEN = BoundedGeneration(
    name="gen_len",
    mode="gen_len",
    answer_source="tokens",
    summary="share of the answer's tokens when as many are written greedily",
)
TF_TOKEN = TeacherForced(
    name="tf_token",
    mode="tf_token",
    answer_source="argmax",
    aliases=("teacher_forced",),
    summary="share of the answer's tokens that are the argmax when the answer is fed",
)
TF_EXACT = TeacherForced(
    name="tf_exact",
    mode="tf_exact",
    answer_source="argmax",
    whole=True,
    summary="whether all of the answer's tokens are the argmax when the answer is fed",
)
PROTOCOLS: tuple[Protocol, ...] = (GEN_FREE, GEN_WILD, GEN_LEN, TF_TOKEN, TF_EXACT)


def resolve_protocol(name: str | Protocol, known: Sequence[Protocol] = PROTOCOLS) -> Protocol:
    """The protocol of this name or alias; a Protocol is given back as it is.

    Raises UnknownNameError naming the known ones and the nearest.
    """
    if isinstance(name, Protocol):
        return name
    by_name = {spelling: protocol for protocol in known for spelling in (protocol.name, *protocol.aliases)}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use one of them, or pass a Protocol object"
        raise UnknownNameError(f"there is no protocol {name!r}; known are {', '.join(by_name)}; {hint}")
    return by_name[name]


def resolve_metrics(names: str | Iterable[str], known: Iterable[MetricInfo]) -> tuple[str, ...]:
    """Groups of metrics on request, each once, in the order given.

    Raises UnknownNameError naming the known ones and the nearest.
    """
    groups = dict.fromkeys(metric.group for metric in known if metric.on_request)
    given = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in given:
        if name not in groups:
            near = difflib.get_close_matches(name, groups, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "install the plugin that has it, or leave it out"
            raise UnknownNameError(
                f"there are no metrics {name!r} to ask for; there are {', '.join(groups) or 'none'}; {hint}"
            )
    return given


def resolve_protocols(
    names: str | Protocol | Iterable[str | Protocol], known: Sequence[Protocol] = PROTOCOLS
) -> tuple[Protocol, ...]:
    """The protocols of these names (or of one name), each once, in the order given.

    Raises UnknownNameError for a name nobody has, and DuplicateNameError for two different ones of the same name.
    """
    found: dict[str, Protocol] = {}
    for name in [names] if isinstance(names, str | Protocol) else names:
        protocol = resolve_protocol(name, known)
        if found.setdefault(protocol.name, protocol) != protocol:
            raise DuplicateNameError(
                f"two different protocols are called {protocol.name!r}, so their results would share a key; rename one"
            )
    return tuple(found.values())
