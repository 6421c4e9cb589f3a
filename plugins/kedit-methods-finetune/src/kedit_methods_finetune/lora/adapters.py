"""Low-rank adapters of peft around a live model's projections, there for as long as they are trained.

peft builds its layers in a container of ours that holds nothing but the projections, so it never writes to the model.
The layers then stand in the projections' places, and afterwards the very same projections stand there again.

LoRA: Hu et al. 2021 (arXiv 2106.09685), section 4.1. AdaLoRA: Zhang et al. 2023 (arXiv 2303.10512), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from kedit_core.editing import EditContext
from kedit_core.extras import needed
from kedit_core.patches import LowRankDelta
from kedit_methods_finetune.hparams.lora import AdaLoraHyperParams, AdapterHyperParams, LoraHyperParams
from kedit_methods_finetune.lora.targets import Target

_NAME = "kedit"  # of the one adapter in each of peft's layers


def require_peft(context: EditContext) -> Any:
    """The peft library. Raises MissingExtraError with what to pip install when it cannot be imported."""
    name = context.method.name if context.method else "lora"
    return needed("peft", f"method {name!r}", "kedit-methods-finetune[peft]")


class Dropout(nn.Module):
    """Inputs left out at random while ``on``, drawn from a generator of the edit's own and not from the global one.

    Drawn where the inputs are: on an accelerator by a generator there, which the edit's own one seeds.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self.generator = generator
        self.on = False
        self._there: dict[torch.device, torch.Generator] = {}

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """On inside, off afterwards."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def forward(self, value: Tensor) -> Tensor:
        """``[..., in]``, some of it zero and the rest scaled up, or as it is."""
        if not self.on or self.share == 0:
            return value
        kept = torch.rand(value.shape, generator=self._on(value.device), device=value.device) >= self.share
        return value * (kept.to(value.dtype) / (1 - self.share))

    def _on(self, device: torch.device) -> torch.Generator:
        if device.type == "cpu":
            return self.generator
        if device not in self._there:
            seed = int(torch.randint(2**62, (), generator=self.generator))
            self._there[device] = torch.Generator(device).manual_seed(seed)
        return self._there[device]


class Adapters:
    """LoRA layers: ``W + alpha/rank * B A``, A ``[rank, in]`` Kaiming-uniform, B ``[out, rank]`` zero at first.

    Args:
        peft: the library.
        targets: projections that get an adapter; their weights take no gradient from here on.
        hparams: settings.
        generator: where all random numbers come from.
        steps: how many optimiser steps will be made.

    Memory: ``rank (in + out)`` numbers in float32 for each target (the weight's dtype where that is wider), and three
    times that in training.
    """

    def __init__(
        self,
        peft: Any,
        targets: Sequence[Target],
        hparams: AdapterHyperParams,
        generator: torch.Generator,
        steps: int,
    ) -> None:
        self.targets = tuple(targets)
        self.dropout = Dropout(hparams.dropout, generator)
        self._bench = nn.ModuleDict({f"t{i}": target.module for i, target in enumerate(targets)})
        with _seeded(generator):
            self.tuner = self._tuner(peft, hparams, steps)
        self.layers: dict[str, Any] = {target.place: self._bench[f"t{i}"] for i, target in enumerate(targets)}
        for layer in self.layers.values():
            layer.lora_dropout[_NAME] = self.dropout
            for name, parameter in layer.named_parameters():
                # peft makes them in the weight's dtype, which may be too coarse for small steps
                if not name.startswith("base_layer."):
                    parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    def _tuner(self, peft: Any, hparams: AdapterHyperParams, steps: int) -> Any:
        config = peft.LoraConfig(r=cast(LoraHyperParams, hparams).rank, **self._common(hparams))
        return peft.LoraModel(self._bench, config, _NAME)

    def _common(self, hparams: AdapterHyperParams) -> dict[str, Any]:
        return {
            "target_modules": r"t\d+",
            "lora_alpha": hparams.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            # peft warns where this is not as the modules have it; only its own merging reads it
            "fan_in_fan_out": any(not isinstance(target.module, nn.Linear) for target in self.targets),
        }

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of the model."""
        return [parameter for parameter in self._bench.parameters() if parameter.requires_grad]

    def penalty(self) -> Tensor | None:
        """What is added to the loss, or None."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number ``step`` (from 0), with its gradients still there."""

    def factors(self, layer: Any) -> tuple[Tensor, Tensor]:
        """left ``[out, r]`` and right ``[r, in]`` of what a layer adds to its weight."""
        return layer.scaling[_NAME] * layer.lora_B[_NAME].weight, layer.lora_A[_NAME].weight

    def deltas(self) -> list[LowRankDelta]:
        """What the adapters add to the weights, in the adapters' own dtype; those of rank 0 are left out."""
        found = []
        for place, layer in self.layers.items():
            left, right = (factor.detach() for factor in self.factors(layer))
            if right.shape[0]:
                found.append(LowRankDelta(place, left, right))
        return found

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """The adapters in the projections' places; afterwards the same projections are there again, also on errors."""
        layers = {target.module: self.layers[target.place] for target in self.targets}
        slots = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is not None and child in layers
        ]
        try:
            for parent, name, child in slots:
                parent._modules[name] = layers[child]
            yield
        finally:
            for parent, name, child in slots:
                parent._modules[name] = child


class SvdAdapters(Adapters):
    """AdaLoRA's layers: ``W + alpha/init_rank * B diag(E) A``, E zero at first, A and B normal with deviation 0.02.

    Unless ``parity``, ranks are taken away in the course of the steps where they matter least, by setting entries of E
    to zero, until ``target_rank`` a layer are left on average. The last step leaves no more, also where the schedule
    has no allocation there: Adam lets ranks grow back after one.
    """

    settings: AdaLoraHyperParams
    steps: int

    def _tuner(self, peft: Any, hparams: AdapterHyperParams, steps: int) -> Any:
        self.settings = hparams = cast(AdaLoraHyperParams, hparams)
        self.steps = steps
        config = peft.AdaLoraConfig(
            init_r=hparams.init_rank,
            target_r=hparams.target_rank,
            tinit=0 if hparams.parity else hparams.tinit,
            tfinal=0 if hparams.parity else hparams.tfinal,
            deltaT=hparams.delta_t,
            beta1=hparams.beta1,
            beta2=hparams.beta2,
            orth_reg_weight=hparams.orthogonality,
            total_step=steps,
            **self._common(hparams),
        )
        tuner = peft.AdaLoraModel(self._bench, config, _NAME)
        for name, parameter in self._bench.named_parameters():
            if ".ranknum." in name:  # the divisor, a constant, which some versions of peft leave trainable
                parameter.requires_grad_(False)
        return tuner

    def penalty(self) -> Tensor | None:
        """``orthogonality`` times the mean over all A and B of ``|A A^T - I|`` and ``|B^T B - I|`` (Frobenius)."""
        if self.settings.orthogonality == 0:
            return None
        norms = []
        for layer in self.layers.values():
            right, left = layer.lora_A[_NAME], layer.lora_B[_NAME]
            unit = torch.eye(right.shape[0], dtype=right.dtype, device=right.device)
            norms += [torch.linalg.matrix_norm(gram - unit) for gram in (right @ right.T, left.T @ left)]
        home = norms[0].device
        return self.settings.orthogonality * torch.stack([norm.to(home) for norm in norms]).mean()

    def after_step(self, step: int) -> None:
        """Have peft weigh the ranks by what they did in this step, and take away those over the budget."""
        if self.settings.parity:
            return
        for parameter in self.parameters():
            if parameter.grad is None:  # a projection that this batch did not run; peft expects a gradient of each
                parameter.grad = torch.zeros_like(parameter)
        self.tuner.update_and_allocate(step)
        if step == self.steps - 1 and self.settings.tfinal == 0:
            # with steps after the last allocation peft keeps them at its ranks
            allocator = self.tuner.rankallocator
            allocator.mask_to_budget(self.tuner.model, allocator.target_bgt)

    def factors(self, layer: Any) -> tuple[Tensor, Tensor]:
        """E is folded into A, and ranks that were taken away are left out."""
        kept = layer.lora_E[_NAME].detach().flatten() != 0
        # peft's own divisor: the rank at first, and a little against division by zero
        scale = layer.scaling[_NAME] / (layer.ranknum[_NAME] + 1e-5)
        left, right = layer.lora_B[_NAME][:, kept], (layer.lora_A[_NAME] * layer.lora_E[_NAME])[kept]
        return left * scale, right


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """What the global CPU generator draws inside follows from ``generator``; afterwards it is as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
