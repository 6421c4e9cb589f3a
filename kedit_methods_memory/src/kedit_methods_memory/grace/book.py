"""How a codebook's keys, radii and answers change with each edit: structure only, no values and no model.

Hartvigsen et al. 2023 (arXiv 2211.11031), section 3.2 and algorithm 1; specification: GRACE, "Edit procedure".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.nearest import nearest

Case: TypeAlias = Literal["new", "split", "expand", "covered", "overwritten"]
Label: TypeAlias = tuple[int, ...]

_SAME_KEY = 1e-6  # of 1 + the query's length: what rounding makes of no distance
_LEAST = 1e-4  # of a radius: batched and single passes differ by about as much
_GAP = 1e-5  # between the balls of two answers


@frozen(kw_only=True)
class Rules:
    """Which of the published and other ways a codebook follows.

    Attributes:
        eps0: radius of a new key.
        moving: an expanded key moves half way.
        original: duplicates split, radii may vanish, and an expanded radius is the bare distance, as published.
        by_mean: labels (which then hold -100 for each token of the prompt) are the same when their means are.
        prepend: labels are put in front while keys are put behind, as EasyEdit does.
        slack: share of the query's length by which an expanded radius goes beyond the distance: what the query of the
            same prompt in another batch may be off by.
    """

    eps0: float
    moving: bool = False
    original: bool = False
    by_mean: bool = False
    prepend: bool = False
    slack: float = 0.0

    @classmethod
    def of(cls, hparams: GraceHyperParams, slack: float) -> Rules:
        """Those that the settings ask for."""
        compat = hparams.compat != "none"
        original = compat or hparams.duplicate_policy == "original"
        return cls(
            eps0=hparams.eps0,
            moving=hparams.expand == "moving_average",
            original=original,
            by_mean=compat,
            prepend=hparams.compat == "easyedit",
            slack=0.0 if original else slack,
        )

    def same(self, one: Label, other: Label) -> bool:
        """Whether two labels are one answer."""
        return _mean(one) == _mean(other) if self.by_mean else one == other


def _mean(label: Label) -> float:
    return float(torch.tensor(label, dtype=torch.float32).mean())


@frozen
class Admission:
    """What one edit did to the codebook.

    Attributes:
        case: which line of the table.
        key: the key that answers for the edit, whose value is to be trained.
        near: the nearest key before the edit, -1 for the first edit of all.
        distance: to it, 0 for the first.
    """

    case: Case
    key: int
    near: int
    distance: float

    @property
    def begins(self) -> bool:
        """Whether the value begins anew."""
        return self.case in ("new", "split", "overwritten")


class Book:
    """Keys ``[n, width]`` and radii ``[n]`` float32 on the CPU, and for each place a label.

    ``labels`` say which edit's label stands there (``-1`` while the labels themselves are unknown is not allowed).
    """

    def __init__(
        self, rules: Rules, keys: Tensor | None = None, radii: Tensor | None = None, labels: Sequence[Label] = ()
    ) -> None:
        self.rules = rules
        self.labels = list(labels)
        self._count = 0 if keys is None else len(keys)
        self._keys = torch.empty(0) if keys is None else keys.float().clone()
        self._radii = torch.empty(0) if radii is None else radii.float().clone()

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Tensor:
        """``[n, width]``."""
        return self._keys[: self._count]

    @property
    def radii(self) -> Tensor:
        """``[n]``."""
        return self._radii[: self._count]

    def admit(self, query: Tensor, label: Label) -> Admission:
        """Take in one edit by its query ``[width]`` and label."""
        query, rules = query.detach().to("cpu", torch.float32), self.rules
        if not self._count:
            return Admission("new", self._add(query, rules.eps0, label), -1, 0.0)
        found = nearest(query.unsqueeze(0), self.keys)
        near, distance = int(found.index[0]), found.distance[0]
        radius, same = self.radii[near], rules.same(label, self.labels[near])
        key, case = near, self._case(query, distance, radius, same)
        if case == "new":
            key = self._add(query, rules.eps0, label)
        elif case == "split":
            key = self._add(query, 0.0, label)
            self.radii[near], self.radii[key] = self._halves(distance)
        elif case == "expand":
            if rules.moving:
                self.keys[near] = (self.keys[near] + query) / 2
            self.radii[near] = distance if rules.original else self._just_beyond(query, distance)
        elif case == "overwritten":
            self.labels[near] = label
        return Admission(case, key, near, float(distance))

    def _case(self, query: Tensor, distance: Tensor, radius: Tensor, same: bool) -> Case:
        rules = self.rules
        if not rules.original and float(distance) <= _SAME_KEY * (1 + float(query.norm())):
            return "covered" if same else "overwritten"
        if distance > rules.eps0 + radius:
            return "new"
        if not same:
            return "split"
        return "expand" if distance > radius else "covered"

    def _halves(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Radii of the old and the new key after a split: disjoint balls, unless they would be lost in rounding."""
        old, new = distance / 2 - _GAP, distance / 2
        return (old, new) if self.rules.original else (old.clamp(min=_LEAST), new.clamp(min=_LEAST))

    def _just_beyond(self, query: Tensor, distance: Tensor) -> Tensor:
        reach = distance + self.rules.slack * query.norm()
        return torch.nextafter(reach, torch.tensor(torch.inf))

    def _add(self, query: Tensor, radius: float, label: Label) -> int:
        if self._count == len(self._keys):
            room = max(8, self._count)  # doubled, so that n keys are copied O(n) times in all
            self._keys = (
                torch.cat([self.keys, query.new_empty(room, len(query))])
                if self._count
                else query.new_empty(room, len(query))
            )
            self._radii = torch.cat([self.radii, query.new_empty(room)])
        self._keys[self._count], self._radii[self._count] = query, radius
        if self.rules.prepend:
            self.labels.insert(0, label)
        else:
            self.labels.append(label)
        self._count += 1
        return self._count - 1
