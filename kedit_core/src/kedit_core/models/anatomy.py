"""What is in a block: its attention, its MLP and its norms, told by what they do in short runs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from kedit_core.models.parameters import features, is_projection
from kedit_core.models.probe import Probe, Trace, per_token
from kedit_core.models.search import Search
from kedit_core.models.stacks import Stacks


@frozen(kw_only=True)
class Anatomy:
    """The parts of a block, as the fields of a ModelAdapter of the same names; ``hidden_size`` beside them."""

    hidden_size: int
    attn: str
    attn_out: str
    mlp: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    parallel: bool = False
    norm_after_mlp: str | None = None
    mlp_rescaled: bool = False

    def filled(self, template: str, block: str) -> Anatomy:
        """The same with names of another kind in place of the block's: ``model.layers.1`` and ``model.layers.{}``."""

        def name(part: str) -> str:
            return template + part.removeprefix(block)

        return evolve(
            self,
            attn=name(self.attn),
            attn_out=name(self.attn_out),
            mlp=name(self.mlp),
            mlp_in=tuple(name(part) for part in self.mlp_in),
            mlp_out=name(self.mlp_out),
            norm_after_mlp=None if self.norm_after_mlp is None else name(self.norm_after_mlp),
        )


def anatomy_of(probe: Probe, clean: Trace, stacks: Stacks, search: Search) -> Anatomy:
    """The parts of the blocks, as templates; found in the middle block, checked in the first and the last as well.

    Raises:
        UnsupportedModelError: a part could not be found, or the blocks differ in how they use them.
    """
    middle = stacks.blocks[stacks.length // 2]
    parts = _Dissection(probe, clean, middle, search).anatomy()
    templates = parts.filled(stacks.template, middle)
    for block in {stacks.blocks[0]: None, stacks.blocks[-1]: None}:
        here = templates.filled(block, stacks.template)
        if any(name not in clean.calls for name in (here.mlp, here.mlp_out, *here.mlp_in, here.attn, here.attn_out)):
            raise search.failed("the same parts in every block", f"{block} runs others than {middle}")
        if block != middle and _Dissection(probe, clean, block, search).settled(here) != here:
            raise search.failed("blocks of one kind", f"the MLP's output goes other ways in {block} than in {middle}")
    return templates


class _Dissection:
    """One block, taken apart."""

    def __init__(self, probe: Probe, clean: Trace, block: str, search: Search) -> None:
        self.probe, self.clean, self.block, self.search = probe, clean, block, search
        output = clean.output(block)
        if output is None or output.ndim != 3:
            raise search.failed("blocks that give [rows, tokens, hidden]", f"{block} gives something else")
        self.hidden_size = output.shape[-1]
        generator = torch.Generator().manual_seed(1)
        vector = torch.randn(self.hidden_size, generator=generator) * float(output.float().std())
        self.vector = vector.to(output)
        self.called = [name for name in clean.calls if name.startswith(f"{block}.")]

    def anatomy(self) -> Anatomy:
        attn, attn_out = self._attention()
        self.search.found("attention and its output projection", f"{attn} and {attn_out}")
        mlp_in, mlp_out = self._mlp_projections(attn)
        mlp = self._mlp(mlp_in, mlp_out)
        self.search.found("MLP", f"{mlp}, from {', '.join(mlp_in)} to {mlp_out}")
        pushed = self._push(attn)
        parts = Anatomy(
            hidden_size=self.hidden_size,
            attn=attn,
            attn_out=attn_out,
            mlp=mlp,
            mlp_in=mlp_in,
            mlp_out=mlp_out,
            parallel=not _differs(pushed.input(mlp_in[0]), self.clean.input(mlp_in[0])),
        )
        return self.settled(parts)

    def settled(self, parts: Anatomy) -> Anatomy:
        """The parts with how the MLP's output gets to the block's output in this block."""
        pushed = self._push(parts.mlp)
        moved, vector = self._moved(pushed, self.block), self.vector.float()
        plain = evolve(parts, norm_after_mlp=None, mlp_rescaled=False)
        if self._close(moved, vector, self.block, parts.mlp):
            return plain
        if (norm := self._norm_after(parts.mlp, pushed)) is not None:
            self.search.found("norm behind the MLP", norm)
            return evolve(plain, norm_after_mlp=norm)
        factor = float((moved @ vector).mean() / vector.square().sum())
        if abs(factor) > 1e-3 and self._close(moved, factor * vector, self.block, parts.mlp):
            return evolve(plain, mlp_rescaled=True)
        raise self.search.failed(
            "how the MLP's output gets to the block's output",
            f"a vector added to the output of {parts.mlp} does not arrive there, and no norm is run in between",
        )

    # ------------------------------------------------------------------ attention
    def _attention(self) -> tuple[str, str]:
        """The smallest module that mixes positions and ends in a projection back to the residual stream."""
        mixers = self._mixers()
        innermost = [name for name in mixers if not any(other.startswith(f"{name}.") for other in mixers)]
        if len(innermost) != 1:
            found = f"{', '.join(innermost)} all do" if innermost else f"nothing in {self.block} does"
            raise self.search.failed("one attention (a module that mixes positions)", found)
        # From the inside out: the output projection may lie beside the module that mixes.
        for name in sorted((each for each in mixers if innermost[0].startswith(each)), key=len, reverse=True):
            outputs = [each for each in self._projections(inside=name) if self._sizes(each)[0] == self.hidden_size]
            if outputs and self._arrives(outputs[-1], name):
                return name, outputs[-1]
        raise self.search.failed("the attention's output projection", f"no linear map ends {innermost[0]}")

    def _mixers(self) -> list[str]:
        def shake(stream: Tensor) -> Tensor:
            changed = stream.clone()
            changed[:, 0] += 5 * self.vector
            return changed

        shaken = self.probe.run(change_input={self.block: shake})
        later = slice(1, None)
        return [
            name
            for name in self.called
            if self._projections(inside=name)
            and _differs(shaken.output(name), self.clean.output(name), later)
            and not _differs(shaken.input(name), self.clean.input(name), later)
        ]

    # ------------------------------------------------------------------ MLP
    def _mlp_projections(self, attn: str) -> tuple[tuple[str, ...], str]:
        sought = "the MLP's projections"
        maps = [name for name in self._projections(inside=self.block) if not name.startswith(f"{attn}.")]
        back = [name for name in maps if self._sizes(name)[0] == self.hidden_size]
        if not back:
            reason = f"no linear map outside of {attn} gives {self.hidden_size} numbers"
            raise self.search.failed(sought, reason + self._experts(attn))
        mlp_out = back[-1]
        inner = self._sizes(mlp_out)[1]
        mlp_in = tuple(
            name for name in maps[: maps.index(mlp_out)]
            if self._sizes(name)[1] == self.hidden_size and self._sizes(name)[0] % inner == 0
        )  # fmt: skip
        if not mlp_in:
            raise self.search.failed(sought, f"nothing of size {inner} is made for {mlp_out} to read")
        others = [name for name in maps if name not in (*mlp_in, mlp_out)]
        if others or len(mlp_in) > 2 or self.clean.calls[mlp_out].times > 1:
            reason = f"the linear maps of {self.block} outside of {attn} ({', '.join(maps)}) are not those of one MLP"
            raise self.search.failed(sought, reason + self._experts(attn))
        if experts := self._experts(attn):
            raise self.search.failed(sought, f"{mlp_out} is not all of the MLP" + experts)
        return mlp_in, mlp_out

    def _experts(self, attn: str) -> str:
        """In words, why there is no single down-projection, when weights of three axes tell."""
        block = self.probe.model.get_submodule(self.block)
        stacked = [name for name, value in block.named_parameters() if value.ndim == 3]
        outside = [name for name in stacked if not f"{self.block}.{name}".startswith(f"{attn}.")]
        if not outside:
            return ""
        return (
            f"; {self.block}.{outside[0]} holds several matrices, as mixtures of experts do, and which of them is run "
            "differs from token to token: there is no one matrix to edit"
        )

    def _mlp(self, mlp_in: Iterable[str], mlp_out: str) -> str:
        """The module around the projections where it gives what the down-projection gives, else that projection."""
        steps = zip(*(name.split(".") for name in (*mlp_in, mlp_out)), strict=False)
        around = ".".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, steps))
        if around == self.block or around not in self.clean.calls:
            return mlp_out
        inside, outside = self.clean.output(mlp_out), self.clean.output(around)
        same = inside is not None and outside is not None and inside.shape == outside.shape
        return around if same and not _differs(inside, outside) else mlp_out

    def _norm_after(self, mlp: str, pushed: Trace) -> str | None:
        """The first module run behind the MLP that what it gives goes into, and that has no linear map in it."""
        for name in self.called:
            nothing = isinstance(self.probe.model.get_submodule(name), (nn.Dropout, nn.Identity))
            if nothing or self.clean.calls[name].start < self.clean.calls[mlp].end or self._projections(inside=name):
                continue
            if _differs(pushed.input(name), self.clean.input(name)):
                return name
        return None

    # ------------------------------------------------------------------ trying things out
    def _projections(self, inside: str) -> list[str]:
        """Linear maps that are run inside of a module (or are it), in the order they are run."""
        return [
            name
            for name in self.called
            if (name == inside or name.startswith(f"{inside}.")) and is_projection(self.probe.model.get_submodule(name))
        ]

    def _sizes(self, name: str) -> tuple[int, int]:
        return features(self.probe.model.get_submodule(name))

    def _push(self, name: str) -> Trace:
        """A run with the vector added to a module's output at the last token, whence it cannot spread to others."""

        def add(output: Tensor) -> Tensor:
            pushed = output.clone()
            per_token(pushed)[:, -1] += self.vector.to(output)
            return pushed

        return self.probe.run(change_output={name: add})

    def _moved(self, pushed: Trace, name: str) -> Tensor:
        """By how much a module's output has changed at the last token: ``[rows, hidden]``, on the vector's device."""
        after, before = pushed.output(name), self.clean.output(name)
        if after is None or before is None or before.shape[-1] != self.hidden_size:
            return torch.zeros_like(self.vector, dtype=torch.float32)
        return (after[:, -1].float() - before[:, -1].float()).to(self.vector.device)

    def _arrives(self, source: str, target: str) -> bool:
        """Whether a vector added to the output of one module is added to that of another."""
        moved = self._moved(self._push(source), target)
        return self._close(moved, self.vector.float(), target, source)

    def _close(self, moved: Tensor, expected: Tensor, *summed: str) -> bool:
        """Equal but for the rounding of sums of these modules' outputs, in the model's own precision."""
        sizes = [output[:, -1].float().abs() for name in summed if (output := self.clean.output(name)) is not None]
        scale = self.vector.float().abs() + sum(size.to(self.vector.device) for size in sizes)
        tolerance = max(1e-5, 4 * torch.finfo(self.vector.dtype).eps)
        return bool(((moved - expected).abs() <= tolerance * scale).all())


def _differs(one: Tensor | None, other: Tensor | None, tokens: slice = slice(None)) -> bool:
    """Whether two activations of a module, ``[rows, tokens, ...]``, differ by more than rounding; no if one is None."""
    if one is None or other is None:
        return False
    one, other = one[:, tokens].float(), other[:, tokens]
    tolerance = max(1e-4, 4 * torch.finfo(other.dtype).eps) * float(other.abs().max())
    return float((one - other.float()).abs().max()) > tolerance
