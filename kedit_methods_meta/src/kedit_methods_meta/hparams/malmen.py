"""Settings of MALMEN: of an edit, and of training its editor. Imports no torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import field, frozen

from kedit_core.hparams import HyperParams
from kedit_core.training.settings import EditTrainingHyperParams
from kedit_methods_meta.hparams.editor import (
    EditorSettings,
    Part,
    at_least_one,
    not_negative,
    one_of,
    part_of,
    positive,
)

Token: TypeAlias = Literal["ans", "mask"]
Reduction: TypeAlias = Literal["edit_mean", "portion_mean", "sum"]


@frozen(kw_only=True)
class MalmenHyperParams(HyperParams):
    """What is set when facts are edited; all else stands in the editor.

    Attributes:
        strength: factor on the changes of outputs that are asked for; 1 is what the editor was trained for.
        accumulate: solve anew for all edits of this method that are on the model, each read on the unedited base, so
            that rounds give what one batch of all gives, in whatever order. A patch then also holds its own keys and
            values: 4 (in + out) bytes for each token and edited weight.
    """

    strength: float = field(default=1.0, validator=positive)
    accumulate: bool = False


@frozen(kw_only=True, slots=False)
class MalmenEditorSettings(EditorSettings):
    """What a MALMEN editor is, beside its numbers.

    Attributes:
        n_blocks: residual blocks of a net.
        token: which tokens are keys: ``ans`` those at which a token of the answer is predicted (in an encoder all), or
            ``mask`` all but pads.
        reduction: of the loss whose gradient is taken: ``edit_mean`` adds up each edit's mean over its tokens, ``sum``
            adds up all tokens; ``portion_mean`` is the published mean over the tokens of ``micro_batch`` edits, which
            only gives the same for the same edits in the same order.
        micro_batch: edits that are read together, in training and in editing.
        chunk: rows that the nets take at once.
    """

    parts: tuple[Part, ...] = ("mlp_out",)
    layers: tuple[int, ...] = (-6, -5, -4, -3, -2, -1)
    n_blocks: int = field(default=2, validator=at_least_one)
    token: Token = field(default="ans", validator=one_of(Token))
    reduction: Reduction = field(default="edit_mean", validator=one_of(Reduction))
    micro_batch: int = field(default=32, validator=at_least_one)
    chunk: int = field(default=1024, validator=at_least_one)


@frozen(kw_only=True)
class MalmenTrainingHyperParams(MalmenEditorSettings, EditTrainingHyperParams):
    """What is set when a MALMEN editor is trained (defaults: Tan et al. 2024).

    ``batch_size`` is how many edits are made together in a step, and ``lr`` the rate of all that is learned. The paper
    makes one pass over its records: ``iterations`` = records / ``batch_size``. All that counts iterations is smaller
    than elsewhere, since each is of hundreds of edits.

    Attributes:
        eta: first step size of each edited weight.
        log_ridge: first logarithm of each edited weight's ridge.
        c_edit, c_loc: weights of the two losses.
    """

    eta: float = 1e-6
    log_ridge: float = 0.0
    c_edit: float = field(default=1.0, validator=not_negative)
    c_loc: float = field(default=1.0, validator=not_negative)
    batch_size: int = field(default=512, validator=at_least_one)
    accumulate: int = field(default=1, validator=at_least_one)
    iterations: int = field(default=1000, validator=at_least_one)
    val_interval: int = field(default=100, validator=at_least_one)
    save_interval: int = field(default=100, validator=at_least_one)
    log_interval: int = field(default=10, validator=at_least_one)
    lr: float = field(default=1e-5, validator=positive)
    clip: float = field(default=1.0, validator=positive)

    @property
    def editor(self) -> MalmenEditorSettings:
        """The part of the settings that the editor keeps."""
        return part_of(self, MalmenEditorSettings)
