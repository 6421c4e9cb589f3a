"""Settings of SERAC: of an edit, and of training its editor. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams
from kedit_core.training import TrainingHyperParams

Form: TypeAlias = Literal["embedding", "cross_attend"]
Key: TypeAlias = Literal["labelled", "label_free"]
Measure: TypeAlias = Literal["l2", "cos"]
Pooling: TypeAlias = Literal["auto", "first", "mean", "last"]
Outer: TypeAlias = Literal["original", "rephrase", "portability"]
Objective: TypeAlias = Literal["supervised", "easyedit"]
Repeat: TypeAlias = Literal["replace", "keep"]

CONTEXT = "{prompt} {target} "

_positive: Any = validators.gt(0)
_from_none: Any = validators.ge(0)
_share: Any = validators.and_(validators.ge(0), validators.le(1))


def _one_of(known: Any) -> Any:
    return validators.in_(get_args(known))


def _no_mixture(instance: Any, attribute: Any, value: bool) -> None:
    if value:
        raise ValueError(
            "a patch routes a whole prompt to one model, and a mixture of two models' distributions is no route; train "
            "with objective easyedit to use the mixture as a loss, and leave this False"
        )


def _template(instance: Any, attribute: Any, value: str) -> None:
    if "{prompt}" not in value or "{target}" not in value:
        raise ValueError("the context must hold {prompt} and {target}, the edit's own")


def _outers(instance: Any, attribute: Any, value: Sequence[str]) -> None:
    if not value or len(set(value)) != len(value):
        raise ValueError(f"name one or more of {', '.join(get_args(Outer))}, each once")


@frozen(kw_only=True)
class SeracHyperParams(HyperParams):
    """What is set when facts are edited; all else stands in the editor checkpoint.

    Attributes:
        threshold: a prompt is in scope when its similarity to some entry is greater than this.
        on_repeat: a prompt that is edited again: ``replace`` what it said before, or ``keep`` both entries (as the
            original does; equally near ones are then told apart by their order only).
        soft_weighting: the original's mixture of both models' distributions in place of a decision. Always refused
            here: see docs of the package.
    """

    threshold: float = field(default=0.5, validator=validators.and_(validators.gt(0), validators.lt(1)))
    on_repeat: Repeat = field(default="replace", validator=_one_of(Repeat))
    soft_weighting: bool = field(default=False, validator=_no_mixture)


@frozen(kw_only=True)
class SeracTrainingHyperParams(TrainingHyperParams):
    """What is set when a SERAC editor is trained (defaults: Mitchell et al. 2022), beside what every training is told.

    Attributes:
        form: ``embedding`` compares two texts' vectors; ``cross_attend`` reads both in one pass, once for each entry.
        key: what of an edit the classifier reads: ``labelled`` prompt and target, ``label_free`` the prompt alone.
        heads: the vector is cut into so many; the nearest counts.
        measure, square: Euclidean distance (squared or not), or ``cos``: one minus the cosine.
        bounded: vectors go through tanh.
        scale: log-similarity is minus ``scale`` times the distance.
        pooling: the vector of a text: of its ``first`` token, of its ``last``, or the ``mean``; ``auto`` takes the
            first where the classifier's tokenizer puts a token of its own there.
        context: what the counterfactual model reads before a prompt; ``{prompt}`` and ``{target}`` are the edit's.
        freeze_cntr: the base itself answers from the edit's text, and only the classifier is trained.
        scratch_width, scratch_layers, scratch_heads: of a classifier that is made from scratch.
        trainable_blocks: train the last so many blocks of each model and what stands above them; None trains all.
        objective: ``supervised``, or ``easyedit``: the soft mixture's loss on the edit's own prompt, and divergence.
        batch_size: edits of a micro-batch; as many prompts out of scope come with them.
        lr_classifier: learning rate of the classifier, where it is not ``lr``.
        c_edit, c_loc: weights of the two losses.
        outer: which in-scope prompts are drawn, uniformly over those that a record has.
        own_negatives: a record's own locality probes are drawn as prompts out of scope too (at even odds).
        use_all_negatives: hold every out-of-scope prompt against every entry, not only against its own.
        hard_negatives: probability of drawing a near neighbour in place of any other record's prompt (0.5 in the
            paper, where it is enabled).
        hard_near, hard_far: neighbours that are drawn from: of the ``hard_far`` nearest, all but the first
            ``hard_near``, which may be paraphrases.
        hard_temperature: neighbours are weighted by ``exp(cosine / hard_temperature)``.
        flip: the edit is made with an in-scope prompt, and asked for by its own.
        alternatives_from: name of a field of the requests' ``meta``; each time a record is drawn its new answer is one
            that some record with the same value there has, so that the counterfactual model must read it.
    """

    form: Form = field(default="embedding", validator=_one_of(Form))
    key: Key = field(default="labelled", validator=_one_of(Key))
    heads: int = field(default=1, validator=validators.ge(1))
    measure: Measure = field(default="l2", validator=_one_of(Measure))
    square: bool = True
    bounded: bool = False
    scale: float = field(default=1.0, validator=_positive)
    pooling: Pooling = field(default="auto", validator=_one_of(Pooling))
    context: str = field(default=CONTEXT, validator=_template)
    freeze_cntr: bool = False
    scratch_width: int = field(default=128, validator=validators.ge(8))
    scratch_layers: int = field(default=1, validator=validators.ge(1))
    scratch_heads: int = field(default=4, validator=validators.ge(1))
    trainable_blocks: int | None = field(default=None, validator=validators.optional(_from_none))
    objective: Objective = field(default="supervised", validator=_one_of(Objective))
    batch_size: int = field(default=10, validator=validators.ge(1))
    lr_classifier: float | None = field(default=None, validator=validators.optional(_positive))
    c_edit: float = field(default=0.1, validator=_from_none)
    c_loc: float = field(default=1.0, validator=_from_none)
    outer: tuple[Outer, ...] = field(default=("original", "rephrase"), validator=_outers)
    own_negatives: bool = True
    use_all_negatives: bool = False
    hard_negatives: float = field(default=0.0, validator=_share)
    hard_near: int = field(default=25, validator=_from_none)
    hard_far: int = field(default=100, validator=validators.ge(1))
    hard_temperature: float = field(default=0.1, validator=_positive)
    flip: bool = False
    alternatives_from: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.hard_near >= self.hard_far:
            raise ValueError("hard_far must be greater than hard_near")
        if self.scratch_width % self.scratch_heads:
            raise ValueError("scratch_width must be a multiple of scratch_heads")
        if self.form == "cross_attend" and self.objective == "easyedit":
            raise ValueError("objective easyedit goes with form embedding")
        if self.objective == "easyedit" and self.freeze_cntr and self.c_loc == 0:
            raise ValueError("with a frozen counterfactual model and c_loc 0 nothing keeps the classifier apart")
