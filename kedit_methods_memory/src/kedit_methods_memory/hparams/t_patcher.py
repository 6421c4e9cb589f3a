"""Settings of T-Patcher. Imports no torch."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams

Activation: TypeAlias = Literal["model", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]
Keep: TypeAlias = Literal["best", "last"]
Kind: TypeAlias = Literal["exp", "margin", "expmargin", "non_use"]

NOT_USED: Kind = "non_use"
_AMPLIFY: float | None = 10.0
_FORM = re.compile(r"(?:top([1-9]\d*)_)?(exp|margin|expmargin)")
_KL = re.compile(r"kl_([1-9]\d*)")


@frozen
class Form:
    """How many exponents become one loss.

    Attributes:
        kind: the mean of ``exp`` (their exponentials), ``margin`` (the positive ones), ``expmargin`` (exponentials of
            the positive ones), or nothing (``non_use``).
        top: only so many, the largest; None for all.
    """

    kind: Kind
    top: int | None = None

    @classmethod
    def parse(cls, name: str) -> Form:
        """From the name the authors' code has for it: ``top5_exp``, ``margin``, ``non_use``, ...

        Raises ValueError for a name that is none.
        """
        if name == NOT_USED:
            return cls(NOT_USED)
        if (found := _FORM.fullmatch(name)) is None:
            raise ValueError(
                f"there is no loss {name!r}; write exp, margin or expmargin, top5_exp and so on, or non_use"
            )
        kind: Any = found[2]
        return cls(kind, None if found[1] is None else int(found[1]))


@frozen
class MemoryForm:
    """The memory loss: two forms added, or the divergence on ``kl`` samples of the memory."""

    relative: Form = Form(NOT_USED)
    absolute: Form = Form(NOT_USED)
    kl: int | None = None

    @classmethod
    def parse(cls, name: str) -> MemoryForm:
        """``top1000_exp+top1000_exp`` (relative to the example, then absolute), ``kl_50``, ``non_use``.

        Raises ValueError for a name that is none.
        """
        if (found := _KL.fullmatch(name)) is not None:
            return cls(kl=int(found[1]))
        if name == NOT_USED:
            return cls()
        first, plus, second = name.partition("+")
        if not plus:
            raise ValueError(
                f"there is no memory loss {name!r}; write two forms with a + between them, kl_50 and so on, or non_use"
            )
        return cls(Form.parse(first), Form.parse(second))


def _form(instance: Any, attribute: Any, value: str) -> None:
    Form.parse(value)


def _memory_form(instance: Any, attribute: Any, value: str) -> None:
    MemoryForm.parse(value)


@frozen(kw_only=True)
class TPatcherHyperParams(HyperParams):
    """Settings of T-Patcher. The last MLP is patched: training without the transformer rests on that.

    Attributes:
        max_neurons: neurons of one edit at most; each corrects one wrongly predicted token, the first ones.
        activation: of the new neurons: ``model`` for the one inside the model's MLP. ``relu`` is exactly silent below
            0, where gelu and silu leak a little.
        append_eos: the target ends with the tokenizer's end-of-sequence token.
        lr, weight_decay: of Adam (L2), over keys, biases and values.
        clip_norm: the gradient of all of these together is not longer than this.
        amplify: factor on random initial values. None: no factor.
        freeze_amplify: do not train that factor too.
        max_epochs: steps at most.
        validate_every: steps between two looks at how far training is.
        min_epochs: looks count after so many steps.
        use_validation: go on while the memory loss on held-out memory still falls; False stops at the first right edit.
        keep: which state becomes the patch: ``best`` the right one with the least memory loss on held-out memory,
            ``last`` the one training stopped in (as the authors' code).
        act_loss, act_weight, act_margin: the loss that makes neurons fire on the example: form, weight a, margin.
        memory_loss, memory_weight: the loss that keeps them silent on the memory: forms, weight c.
        memory_margin_1: how far a neuron's input on the memory shall stay below that on the example.
        memory_margin_2: below what it shall stay at all.
        example_repeat: identical copies of the example in a batch; they count in the losses' top k.
        memory_tiled: count each memory value once for every copy in the second memory loss too (as the authors' code).
        label_smoothing: of the edit loss (0.1 in the authors' zsRE).
        dropout: the model's dropout is on in training (as in the authors' code); nothing can then be kept from step to
            step, and each step runs the whole model on all copies.
        update_memory: edited examples of this method's patches on the model join the memory.
        memory_documents: texts the memory is taken from, at most.
        validation_share: share of these texts that is held out for validation.
        memory_size: inputs of the MLP that are kept for training, at most (and as many, in proportion, for validation).
        memory_max_len: tokens of a text that are read.
        memory_seed: of the choice of texts and positions.
        spare_subject: leave texts that name a request's subject out of its memory, so that other wordings of the fact
            are not taught to be silent on.
        fast: False runs the whole model at every step: same result, slower.
    """

    max_neurons: int = field(default=5, validator=validators.ge(1))
    activation: Activation = field(default="model", validator=validators.in_(get_args(Activation)))
    append_eos: bool = False
    lr: float = field(default=0.01, validator=validators.gt(0))
    weight_decay: float = field(default=0.01, validator=validators.ge(0))
    clip_norm: float = field(default=5.0, validator=validators.gt(0))
    amplify: float | None = field(default=_AMPLIFY, validator=validators.optional(validators.gt(0.0)))
    freeze_amplify: bool = False
    max_epochs: int = field(default=2000, validator=validators.ge(1))
    validate_every: int = field(default=25, validator=validators.ge(1))
    min_epochs: int = field(default=100, validator=validators.ge(0))
    use_validation: bool = True
    keep: Keep = field(default="best", validator=validators.in_(get_args(Keep)))
    act_loss: str = field(default="top5_exp", validator=_form)
    act_weight: float = field(default=1.0, validator=validators.ge(0))
    act_margin: float = 0.0
    memory_loss: str = field(default="top1000_exp+top1000_exp", validator=_memory_form)
    memory_weight: float = field(default=10.0, validator=validators.ge(0))
    memory_margin_1: float = 3.0
    memory_margin_2: float = -3.0
    example_repeat: int = field(default=8, validator=validators.ge(1))
    memory_tiled: bool = False
    label_smoothing: float = field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    dropout: bool = False
    update_memory: bool = True
    memory_documents: int = field(default=2500, validator=validators.ge(2))
    memory_size: int = field(default=40_000, validator=validators.ge(1))
    validation_share: float = field(default=0.2, validator=[validators.gt(0), validators.lt(1)])
    memory_max_len: int = field(default=128, validator=validators.ge(2))
    memory_seed: int = field(default=1, validator=validators.ge(0))
    spare_subject: bool = True
    fast: bool = True
