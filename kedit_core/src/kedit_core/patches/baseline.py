"""The base under the stack: its digests, and whether a patch is for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kedit_core.errors import BaseMismatchError, InputError, RequirementError
from kedit_core.models.wrappers import architecture_of
from kedit_core.patches.digests import digests_in, dtype_name, path_digest
from kedit_core.patches.format import Base, BaseTensor, EditPatch
from kedit_core.patches.manifest import Requirement
from kedit_core.patches.places import Fingerprint, Place, find_place, names_by_parameter


class BaseDigests:
    """Digests of base tensors, each computed once as long as storage and version stay."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Fingerprint, dict[str, str]]] = {}

    def of(
        self,
        name: str,
        read: Callable[[], Tensor],
        mark: Fingerprint,
        dtypes: Sequence[torch.dtype],
        agreed: Callable[[bool], bool] = bool,
    ) -> dict[str, str]:
        """dtype name -> digest of the tensor that ``read`` gives, whose state ``mark`` describes.

        ``agreed``: whether some digest is missing -> whether it is for some process that reads the same tensor.
        """
        known = self.known(name, mark)
        missing = [dtype for dtype in dtypes if dtype_name(dtype) not in known]
        if agreed(bool(missing)):
            known |= digests_in(read(), missing or dtypes)
            self._known[name] = (mark, known)
        return {dtype_name(dtype): known[dtype_name(dtype)] for dtype in dtypes}

    def known(self, name: str, mark: Fingerprint) -> dict[str, str]:
        """What has been computed already."""
        seen, digests = self._known.get(name, (None, {}))
        return digests if seen == mark else {}

    def renew(self, name: str, before: Fingerprint, after: Fingerprint) -> None:
        """The stack put the same storage back: the digests still hold."""
        if digests := self.known(name, before):
            self._known[name] = (after, digests)


def describe_tensor(place: Place, digests: Mapping[str, str]) -> BaseTensor:
    """The manifest's record of a parameter; a packed one has no digests."""
    return BaseTensor(shape=place.shape, layout=place.layout, aliases=place.aliases, sha256=digests)


def _described(base: Base) -> str:
    """The base as messages name it: architecture, and name where it is known."""
    return f"{base.architecture} {base.name}" if base.name else f"an unnamed {base.architecture}"


def check_architecture(model: nn.Module, base: Base) -> None:
    """BaseMismatchError unless the patch is for a model of this class."""
    if (live := architecture_of(model)) != base.architecture:
        raise BaseMismatchError(
            f"the patch was made for a {base.architecture} and this model is a {live}; load the right base, or force it"
        )


def check_names(model: nn.Module, base: Base, name: str | None) -> None:
    """BaseMismatchError when name or revision are known on both sides and differ: all that quantised weights allow."""
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    for what, mine, theirs in (("name", name, base.name), ("revision", revision, base.revision)):
        if mine is not None and theirs is not None and mine != theirs:
            raise BaseMismatchError(f"the patch was made for the base {what} {theirs!r} and this one is {mine!r}")


def check_places(
    model: nn.Module, base: Base, force: bool, names: Mapping[int, Sequence[str]] | None = None
) -> dict[str, Place]:
    """The live places of every tensor the patch describes: there, of the same shape, layout and ties.

    Raises BaseMismatchError. ``force`` lets other ties pass; shape and layout never can differ. ``names`` are those
    :func:`names_by_parameter` gives now.
    """
    places = {}
    names = names_by_parameter(model) if names is None else names
    for name, wanted in base.tensors.items():
        try:
            place = find_place(model, name, names)
        except InputError as error:
            if all(name not in known for known in names.values()):
                raise BaseMismatchError(
                    f"this {architecture_of(model)} has no parameter {name!r}, and the patch was made for "
                    f"{_described(base)}; load that model"
                ) from error
            raise BaseMismatchError(f"the patch does not fit this model: {error}") from error
        if place.shape != wanted.shape:
            raise BaseMismatchError(
                f"{name!r} is stored as {list(place.shape)} here and as {list(wanted.shape)} in the patch's base, "
                f"{_described(base)}; load that model"
            )
        if (place.layout == "in_out") != (wanted.layout == "in_out"):
            raise BaseMismatchError(
                f"{name!r} is stored {place.layout} here and {wanted.layout} in the patch's base, {_described(base)}; "
                "load that model"
            )
        if set(place.aliases) != set(wanted.aliases) and not force:
            raise BaseMismatchError(
                f"{name!r} is tied to {list(place.aliases)} here and to {list(wanted.aliases)} in the patch's base; "
                "load the model with the same ties, or force it"
            )
        places[name] = place
    return places


def check_digests(
    patch: EditPatch, places: Mapping[str, Place], digest: Callable[[Place, torch.dtype], str]
) -> tuple[str, ...]:
    """Compare each described tensor with the base; names of those that could not be compared.

    ``digest(place, dtype)`` is the digest of the base tensor cast to ``dtype``. A float64 base that the patch has no
    digest for is compared as float32. Raises BaseMismatchError naming the tensor.
    """
    unverified = []
    for name, wanted in patch.base.tensors.items():
        place = places[name]
        dtype = place.dtype
        if dtype == torch.float64 and "float64" not in wanted.sha256:
            dtype = torch.float32
        expected = wanted.sha256.get(dtype_name(dtype))
        if place.packed or expected is None:
            unverified.append(name)
        elif (found := digest(place, dtype)) != expected:
            raise BaseMismatchError(
                f"the base of {name!r} hashes to {found[:12]} as {dtype_name(dtype)} where the patch was made for "
                f"{expected[:12]}; load the right base and dtype, or force it; nothing was changed"
            )
    return tuple(unverified)


def verify(
    model: nn.Module,
    patch: EditPatch,
    places: Mapping[str, Place],
    digest: Callable[[Place, torch.dtype], str],
    force: bool = False,
    allow_unverified: bool = False,
    name: str | None = None,
) -> bool:
    """Check that a patch is for the base of this model, at ``places`` (see :func:`check_places`); whether it goes on
    unverified.

    Raises BaseMismatchError: another architecture or value; or weights that cannot be compared, when these are not
    allowed.
    """
    if force:
        return True
    check_architecture(model, patch.base)
    return check_unknown(model, patch.base, check_digests(patch, places, digest), allow_unverified, name)


def check_unknown(model: nn.Module, base: Base, unknown: Sequence[str], allowed: bool, name: str | None) -> bool:
    """Whether a patch goes on unverified, ``unknown`` being the tensors that could not be compared.

    Raises BaseMismatchError when that is not ``allowed``, or when names or revisions differ (``name``: the model's).
    """
    if not unknown:
        return False
    check_names(model, base, name)
    if not allowed:
        raise BaseMismatchError(
            f"{unknown[0]!r} cannot be compared with what the patch was made for (it is quantised, or the patch has no "
            "digest of its dtype); allow unverified weights to put it on all the same"
        )
    return True


def check_requirements(
    needs: Iterable[Requirement], resources: Mapping[str, Path], digest: Callable[[Path], str] = path_digest
) -> dict[str, Path]:
    """role -> path of what a patch requires; RequirementError when one is missing or is not the right one."""
    found = {}
    for need in needs:
        path = resources.get(need.role)
        if path is None:
            known = f" ({need.name})" if need.name else ""
            raise RequirementError(
                f"the patch needs a file or folder for the role {need.role!r}{known}; give it with "
                f"--with {need.role}=PATH"
            )
        if not Path(path).exists():
            raise RequirementError(f"the {need.role} was given as {path}, which does not exist; check the path")
        if need.sha256 is not None and (there := digest(Path(path))) != need.sha256:
            raise RequirementError(
                f"the {need.role} given hashes to {there[:12]} where the patch needs {need.sha256[:12]}; give the "
                "one it was made with"
            )
        found[need.role] = Path(path)
    return found
