"""Settings of MEND: of an edit, and of training its editor. Imports no torch."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams
from kedit_core.training.settings import EditTrainingHyperParams
from kedit_methods_meta.hparams.editor import EditorSettings, at_least_one, not_negative, one_of, part_of, positive

Transform: TypeAlias = Literal["combined", "separate", "inputs", "gradients", "smaller"]
Init: TypeAlias = Literal["id", "xavier"]
Reduction: TypeAlias = Literal["edit_mean", "batch_mean"]


def slots(template: str) -> tuple[str, ...]:
    """Names in a template's braces, in order. Raises ValueError for one that ``str.format`` cannot read."""
    found = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None:
            if not name.isidentifier() or spec or conversion:
                raise ValueError(f"a slot is a plain name in braces, {{task}}, not {{{name}}}")
            found.append(name)
    return tuple(found)


def _template(instance: Any, attribute: Any, value: str | None) -> None:
    if value is not None:
        slots(value)


@frozen(kw_only=True)
class MendHyperParams(HyperParams):
    """What is set when facts are edited; all else stands in the editor.

    Attributes:
        strength: factor on the update; 1 is what the editor was trained for.
        portion: requests whose factors are taken in one pass; None for as many as fit the memory budget.
    """

    strength: float = field(default=1.0, validator=positive)
    portion: int | None = field(default=None, validator=validators.optional(at_least_one))


@frozen(kw_only=True, slots=False)
class MendEditorSettings(EditorSettings):
    """What a MEND editor is, beside its numbers.

    Attributes:
        n_hidden: hidden layers; there are ``n_hidden + 1`` layers in all.
        init: ``id`` starts at the identity, with residual layers; ``xavier`` without.
        norm: normalise factors before the net.
        transform: what a net changes: ``combined`` both factors in one net, ``separate`` each in its own, ``inputs`` or
            ``gradients`` only one of them, ``smaller`` the one of fewer numbers.
        shared: weights of equal shape share a net (and differ in its scales and shifts).
        sd_floor: keep deviations of the normaliser away from zero, for inputs that are constant in training.
        sign: the update is ``sign * alpha * g``; the published code and its checkpoints have 1.
        reduction: of the loss whose gradient is taken: ``edit_mean`` adds up each edit's mean over its tokens, so that
            an edit's factors do not depend on its company; ``batch_mean`` is the published mean over all edits' tokens
            (edit as many at once as in training then).
        instruction: text put before the prompt that the editor sees, with slots in braces for keys of a request's
            ``meta`` (``"Task: {task}\\nInput: "``); None for none. InstructEdit is MEND trained on several tasks with
            this.
    """

    n_hidden: int = field(default=1, validator=not_negative)
    init: Init = field(default="id", validator=one_of(Init))
    norm: bool = True
    transform: Transform = field(default="combined", validator=one_of(Transform))
    shared: bool = True
    sd_floor: bool = False
    sign: Literal[-1, 1] = -1
    reduction: Reduction = field(default="edit_mean", validator=one_of(Reduction))
    instruction: str | None = field(default=None, validator=_template)


@frozen(kw_only=True)
class MendTrainingHyperParams(MendEditorSettings, EditTrainingHyperParams):
    """What is set when a MEND editor is trained (defaults: Mitchell et al. 2022).

    Attributes:
        n_edits: edits that are made together, as one update; a micro-batch of ``batch_size`` edits is made of separate
            tries of ``n_edits`` each. Train with as many as will be edited at once.
        edit_lr: first step size of each edited weight (learned from there, and may change sign).
        lr_lr: learning rate of the step sizes; None for that of the nets, as the published code in effect does.
        c_edit, c_loc: weights of the two losses.
        compat: ``mend`` follows the published trainer: its order of edits, its late first step, one rate for all;
            ``easyedit`` follows EasyEdit's: labels are the answer tokenised alone, laid against the row's last tokens,
            and unrelated prompts are compared at their answers' own tokens (decoders; set ``outer`` original with it).
    """

    COMPAT: ClassVar[Mapping[str, bool]] = {"mend": True, "easyedit": False}

    n_edits: int = field(default=1, validator=at_least_one)
    edit_lr: float = 1e-4
    lr_lr: float | None = field(default=None, validator=validators.optional(positive))
    c_edit: float = field(default=0.1, validator=not_negative)
    c_loc: float = field(default=1.0, validator=not_negative)
    lr: float = field(default=1e-6, validator=positive)
    patience: int = field(default=20_000, validator=at_least_one)

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.n_edits:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of n_edits {self.n_edits}")
        if self.compat == "mend" and self.lr_lr not in (None, self.lr):
            raise ValueError("with compat mend lr_lr has no effect; leave it out")
        if self.compat == "easyedit" and self.outer != "original":
            raise ValueError("compat easyedit asks edited models the edits' own prompts; set outer to original")

    @property
    def editor(self) -> MendEditorSettings:
        """The part of the settings that the editor keeps."""
        return part_of(self, MendEditorSettings)
