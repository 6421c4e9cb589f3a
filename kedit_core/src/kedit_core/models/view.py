"""A live model seen through its adapter: what methods get as ``context.adapter``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError, UnsupportedModelError
from kedit_core.models.adapter import Layout, ModelAdapter, holds
from kedit_core.models.parameters import aliases_of, bare, features, first_name_of, layout_of
from kedit_core.models.places import list_name, missing_places, resolve
from kedit_core.models.storage import device_of, matrix_of
from kedit_core.models.wrappers import architecture_of

if TYPE_CHECKING:
    from kedit_core.hparams import ModelShape


class ModelView:
    """Parts of a model by what they do. Holds no tensors and changes nothing.

    Blocks are counted from 0, in the stack that is edited. Parts may be on different devices. In an encoder-decoder
    model the edited stack is the encoder's, where the subject is read; ``head`` takes what the decoder gives.

    Args:
        adapter: where things are.
        model: the model itself, not a wrapper (see :meth:`AdapterRegistry.for_model`).

    Raises:
        UnsupportedModelError: the model lacks something that the adapter names; all of it is listed.
    """

    def __init__(self, adapter: ModelAdapter, model: nn.Module) -> None:
        self.adapter = adapter
        self.model = model
        self.config: Any = model.config
        if missing := missing_places(adapter, model):
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise UnsupportedModelError(
                f"{type(model).__name__} lacks {shown}, which the adapter for {', '.join(adapter.architectures)} "
                "names; load the class with the language-model head, or register an adapter for this one"
            )

    def __repr__(self) -> str:
        return f"ModelView({self.shape.architecture}, {self.num_layers} layers, hidden size {self.hidden_size})"

    # ------------------------------------------------------------------ sizes
    @property
    def num_layers(self) -> int:
        """How many blocks the edited stack has."""
        return len(self._list(self.adapter.block))

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return features(self.mlp_out(0))[0]

    def mlp_size(self, layer: int) -> int:
        """Width inside of block ``layer``'s MLP: the input of its down-projection."""
        return features(self.mlp_out(layer))[1]

    def attn_size(self, layer: int) -> int:
        """Input width of block ``layer``'s attention output projection: heads times head size."""
        return features(self.attn_out(layer))[1]

    @property
    def vocab_size(self) -> int:
        """How many logits the head gives; may be more than the tokenizer has tokens."""
        return features(self.lm_head)[0]

    @property
    def max_positions(self) -> int | None:
        """How many positions the model was made for, or None where its config sets no limit (T5)."""
        value = getattr(self.text_config, self.adapter.max_positions, None)
        return None if value is None else int(value)

    @property
    def row_limit(self) -> int | None:
        """Tokens that a row may have; None without a limit, and for an encoder, whose positions are relative."""
        return None if self.is_encoder_decoder else self.max_positions

    @property
    def text_config(self) -> Any:
        """The part of the config that is about text; the config itself unless there are several parts."""
        get = getattr(self.config, "get_text_config", None)
        return get() if callable(get) else self.config

    @property
    def shape(self) -> ModelShape:
        """What presets are matched on: class name, number of layers, hidden size, inner size of the first MLP."""
        from kedit_core.hparams import ModelShape

        return ModelShape(
            architecture=architecture_of(self.model),
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            mlp_size=self.mlp_size(0),
        )

    # ------------------------------------------------------------------ parts of a block
    def block(self, layer: int) -> nn.Module:
        """Block ``layer``. Its first argument and its output (or the first of its outputs) are the residual stream,
        ``[batch, seq, hidden]``."""
        return self._part(self.adapter.block, layer)

    def mlp(self, layer: int) -> nn.Module:
        """The module whose output is what the MLP gives: ``[batch, seq, hidden]``, before any norm behind it.

        A block without an MLP module (OPT) has its down-projection here, and may run it on ``[batch * seq, hidden]``.
        So for what goes into the MLP read the input of ``mlp_in(layer)[0]``."""
        return self._part(self.adapter.mlp, layer)

    def mlp_in(self, layer: int) -> tuple[nn.Module, ...]:
        """Projections from hidden to inner size: one, or gate and up, or both fused into one of twice the size."""
        return tuple(self._part(template, layer) for template in self.adapter.mlp_in)

    def mlp_out(self, layer: int) -> nn.Module:
        """The down-projection: ``[batch, seq, inner]`` (or ``[batch * seq, inner]``) to hidden."""
        return self._part(self.adapter.mlp_out, layer)

    def attn(self, layer: int) -> nn.Module:
        """The attention; its output, or the first of its outputs, is ``[batch, seq, hidden]``."""
        return self._part(self.adapter.attn, layer)

    def attn_out(self, layer: int) -> nn.Module:
        """The attention's output projection: ``[batch, seq, heads * head size]`` to hidden."""
        return self._part(self.adapter.attn_out, layer)

    def norm_after_mlp(self, layer: int) -> nn.Module | None:
        """The norm between the MLP's output and the block's output, where there is one (Gemma 2 and 3, OPT-350m)."""
        if self.adapter.norm_after_mlp is None or not holds(self.adapter.norm_after_mlp_if, self.text_config):
            return None
        return self._part(self.adapter.norm_after_mlp, layer)

    @property
    def block_delta_ok(self) -> bool:
        """Whether a vector added to the MLP's output is just that vector added to the block's output.

        Not so where a norm follows the MLP or the block adds a multiple of it: add to ``mlp(layer)``'s output there."""
        return self.norm_after_mlp(0) is None and not holds(self.adapter.mlp_rescaled, self.text_config)

    @property
    def parallel(self) -> bool:
        """Whether the MLP runs beside the attention of its block, without seeing what that wrote (GPT-J)."""
        return holds(self.adapter.parallel, self.text_config)

    @property
    def cache_argument(self) -> str:
        """Name of the keyword under which a block is given the KV cache."""
        return self.adapter.cache_argument

    # ------------------------------------------------------------------ around the blocks
    @property
    def embeddings(self) -> nn.Module:
        """Token embeddings run in the edited stack: ids ``[batch, seq]`` to ``[batch, seq, hidden]``, with the factor
        some models put on them (Gemma); OPT-350m's are narrower."""
        return self._module(self.adapter.embeddings)

    @property
    def position_embeddings(self) -> nn.Module | None:
        """Learned absolute positions, or None."""
        name = self.adapter.position_embeddings
        return None if name is None else self._module(name)

    @property
    def final_norm(self) -> tuple[nn.Module, ...]:
        """What is applied between the last block and the head, in order; what this model does not have is left out."""
        found = (resolve(self.model, name) for name in self.adapter.final_norm)
        return tuple(module for module in found if module is not None)

    @property
    def lm_head(self) -> nn.Module:
        """The projection from hidden size to the vocabulary."""
        return self._module(self.adapter.lm_head)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether there are two stacks."""
        return self.adapter.encoder_decoder

    @property
    def edit_stack(self) -> Literal["encoder", "decoder"]:
        """Which stack the blocks are of."""
        return "encoder" if self.adapter.encoder_decoder else "decoder"

    @property
    def head_blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of the stack whose last output goes to the head: the decoder's, or the only ones."""
        return tuple(self._list(self.adapter.decoder_block or self.adapter.block))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits from the output of the last of ``head_blocks``, as the model computes them.

        hidden: ``[..., hidden]``, any positions -> ``[..., vocab]``, on the head's device. Differentiable.
        """
        adapter, config = self.adapter, self.text_config
        for norm in self.final_norm:
            hidden = _run(norm, hidden)
        if holds(adapter.rescale_hidden, config):
            hidden = hidden * self.hidden_size**-0.5
        logits = _run(self.lm_head, hidden)
        if (factor := _setting(config, adapter.logit_multiplier)) is not None:
            logits = logits * factor
        if (factor := _setting(config, adapter.logit_divisor)) is not None:
            logits = logits / factor
        if (cap := _setting(config, adapter.logit_softcap)) is not None:
            logits = (logits / cap).tanh() * cap
        return logits

    # ------------------------------------------------------------------ parameters
    def mlp_out_weight(self, layer: int) -> str:
        """Name of the down-projection's weight in the model, as patches use it."""
        self._in_range(layer)
        return self._weight_name(self.adapter.mlp_out.format(layer))

    def attn_out_weight(self, layer: int) -> str:
        """Name of the attention output projection's weight in the model, as patches use it."""
        self._in_range(layer)
        return self._weight_name(self.adapter.attn_out.format(layer))

    def down_weight(self, layer: int) -> Tensor:
        """The down-projection's weight in ``[out, in]`` terms, ``[hidden, inner]``: a view of the parameter, no copy.

        Of an offloaded one it is the value, on the CPU.

        Raises:
            UnsupportedModelError: it is stored packed, as quantised weights are, or spread over several processes.
        """
        name = self.mlp_out_weight(layer)
        weight = matrix_of(self.model, name)
        return weight.t() if self.layout(name) == "in_out" else weight

    def device(self, module: nn.Module) -> torch.device:
        """Where a module of this model computes, also when its weights are offloaded; the CPU for one without weights.

        Raises:
            InputError: the module is not one of this model's.
        """
        path = self.name_of(module)
        for name, parameter in module.named_parameters():
            return device_of(self.model, f"{path}.{name}" if path else name, parameter)
        return torch.device("cpu")

    def layout(self, parameter: str) -> Layout:
        """How a parameter's axes are stored; see :func:`~kedit_core.models.parameters.layout_of`."""
        return layout_of(self.model, parameter)

    def aliases(self, parameter: str) -> tuple[str, ...]:
        """The other names of a tied parameter; empty when it is not tied. Raises InputError when there is none."""
        return aliases_of(self.model, parameter)

    def first_name(self, parameter: str) -> str:
        """The name patches use for a parameter: the first of its names. Raises InputError when there is none."""
        return first_name_of(self.model, parameter)

    def name_of(self, module: nn.Module) -> str:
        """Dotted name of a module of this model; "" for the model itself.

        Raises:
            InputError: the module is not one of this model's.
        """
        for name, candidate in self.model.named_modules():
            if candidate is module:
                return str(name)
        raise InputError(f"the {type(module).__name__} given is no module of this {type(self.model).__name__}")

    # ------------------------------------------------------------------ how names are followed
    def _weight_name(self, module_name: str) -> str:
        return f"{self.name_of(bare(self._module(module_name)))}.weight"

    def _in_range(self, layer: int) -> None:
        if not 0 <= layer < self.num_layers:
            raise InputError(f"there is no block {layer}: the model has blocks 0 to {self.num_layers - 1}")

    def _part(self, template: str, layer: int) -> nn.Module:
        self._in_range(layer)
        return self._module(template.format(layer))

    def _list(self, template: str) -> nn.ModuleList:
        found = resolve(self.model, list_name(template))
        if not isinstance(found, nn.ModuleList):
            raise _gone(list_name(template))
        return found

    def _module(self, name: str) -> nn.Module:
        if (module := resolve(self.model, name)) is None:
            raise _gone(name)
        return module


def _setting(config: Any, attribute: str | None) -> float | None:
    value: float | None = None if attribute is None else getattr(config, attribute, None)
    return value


def _gone(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the model no longer has {name!r}; bind it again after changing its modules")


def _run(module: nn.Module, value: Tensor) -> Tensor:
    """Call a module on a value that may be on another device; accelerate's hooks, where there are any, do it alone."""
    parameter = next(module.parameters(), None)
    if parameter is not None and not hasattr(module, "_hf_hook"):
        value = value.to(parameter.device)
    result: Tensor = module(value)
    return result
