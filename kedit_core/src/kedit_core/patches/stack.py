"""The patches on one live model. Patches are put on and taken off here, and nowhere else.

For any history of apply and remove, weights are bit-identical to applying what remains, in order, to the untouched
base; removing the last gives back the very same storage. Every operation checks all first, then changes, and undoes
what it did when changing fails. Not for use from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attrs import frozen
from torch import Tensor, nn

from kedit_core.contract import WAYS, Installed, Way
from kedit_core.errors import InputError, StackDisturbedError, StackOrderError
from kedit_core.forward.scope import PromptScope
from kedit_core.models.storage import is_dispatched, meshes, reshard
from kedit_core.patches import baseline
from kedit_core.patches.beneath import Beneath
from kedit_core.patches.digests import PathDigests, model_digest
from kedit_core.patches.entries import Entry, check_order, make_entry, modules_wanted, weights_wanted
from kedit_core.patches.following import Following
from kedit_core.patches.format import Base, EditPatch
from kedit_core.patches.hooks import Sites
from kedit_core.patches.kinds import Kinds, Route
from kedit_core.patches.operations import Operation
from kedit_core.patches.places import Fingerprint, Place, find_place, names_by_parameter
from kedit_core.patches.provisional import ProvisionalWriter
from kedit_core.patches.ranks import Ranks
from kedit_core.patches.routing import route_prompts
from kedit_core.patches.slots import Slots

if TYPE_CHECKING:
    from kedit_core.models import ModelView
    from kedit_core.plugins import Catalogue

ATTRIBUTE = "_kedit_stack"


@frozen(kw_only=True)
class Removal:
    """A patch that was taken off, and the patches still on that name it as a parent."""

    patch_id: str
    orphans: tuple[str, ...] = ()


@frozen(kw_only=True)
class Timings:
    """Seconds of the last ``apply``: hashing and comparing the base, and putting the patch on."""

    verify: float = 0.0
    install: float = 0.0


class PatchStack:
    """The patches on one model, in order. Get it with :meth:`of`; there is one per model.

    Attributes:
        model: the live model.
        scope: follows prompts for module operations.
        timings: of the last ``apply``.
    """

    def __init__(
        self,
        model: nn.Module,
        catalogue: Catalogue | None = None,
        kinds: Mapping[str, type[Any]] | None = None,
        view: ModelView | None = None,
    ) -> None:
        self.model = model
        self.scope = PromptScope()
        self.timings = Timings()
        self._kinds = Kinds(catalogue, kinds)
        self._following = Following(model, self.scope, view)
        self._entries: tuple[Entry, ...] = ()
        self._digests = baseline.BaseDigests()
        self._files = PathDigests()
        self._slots = Slots(model, self._digests)
        self._beneath = Beneath(model, self._slots, self._digests)
        self._sites = Sites(model, self._acts)
        self._suspended = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        catalogue: Catalogue | None = None,
        kinds: Mapping[str, type[Any]] | None = None,
        view: ModelView | None = None,
    ) -> PatchStack:
        """The stack of a model, made when first asked for and kept on the model.

        ``catalogue`` and ``kinds`` (name -> class) say where kinds of module and router operations come from; by
        default what is installed. ``view`` is the model's adapter view. Given again, they replace what was there.
        ``save_pretrained`` writes merged weights, and neither attached branches nor module operations; a model
        that torch.compile saw before these came on does not run them.
        A deep copy or a pickle of a model has the weights it was copied with and a fresh, empty stack: copy inside
        ``suspended()`` to get the base.
        """
        stack = model.__dict__.get(ATTRIBUTE)
        if not isinstance(stack, cls) or stack.model is not model:
            stack = cls(model)
            model.__dict__[ATTRIBUTE] = stack
        stack._kinds.add(catalogue, kinds)
        stack._following.view = view or stack._following.view
        return stack

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())

    def _acts(self) -> bool:
        return not self._suspended

    # ------------------------------------------------------------------ reading

    @property
    def patches(self) -> tuple[Entry, ...]:
        """Entries with ``patch``, ``way`` and ``unverified``, in stack order; provisional ones left out."""
        return tuple(entry for entry in self._entries if not entry.provisional)

    @property
    def suspended_now(self) -> bool:
        """Whether the base is shown."""
        return self._suspended > 0

    def place(self, name: str) -> Place:
        """Where a parameter is and how it is stored: its dtype, its device, whether it is packed. Reads no weight."""
        reshard(self.model)
        return find_place(self.model, name)

    def base(self, name: str) -> Tensor:
        """The untouched base of a parameter, as stored; mostly an alias of the kept storage, so never write to it.

        Of an offloaded one it is on the CPU (read from its file where that is); of a packed one it is the packed
        tensor; one that is spread over processes is gathered, and all of them have to ask.
        """
        return self._beneath.tensor(self.place(name))

    def base_digest(self, name: str) -> str:
        """SHA-256 of a parameter's base as float32 (of a packed one, of what it is made of); each computed once."""
        return self._beneath.sha256(self.place(name), self._ranks())

    def base_mark(self) -> tuple[Fingerprint, ...]:
        """Something that compares equal as long as nobody writes to the base, moves it or swaps it; reads no weight.

        Putting patches on and taking them off does not change it. A write through ``.data`` does not show.
        """
        return self._beneath.marks()

    def check(self) -> None:
        """Raise StackDisturbedError when something else changed what the stack put on the model."""
        with self._ranks().agree("check the stack"):
            self._check(base_shown=self._suspended > 0)

    def _check(self, base_shown: bool) -> None:
        self._slots.check(base_shown)
        self._sites.check()
        if self._to_follow() and not self.scope.watching:
            raise StackDisturbedError(
                "the hooks that tell module operations where prompts end were removed by something else; nothing was "
                "changed, reload the model"
            )

    def weights_digest(self, names: Sequence[str] | None = None) -> str:
        """SHA-256 of all parameters and buffers (or of those named) as they are now; see :func:`model_digest`.

        Nothing is cached, so it proves what it says.
        """
        return model_digest(self.model, names)

    def base_of(self, places: Sequence[Operation | str], name: str | None = None, revision: str | None = None) -> Base:
        """The manifest's description of the base under the stack, for a patch with these operations or at these places.

        A place is a parameter or a module; of a module, all parameters are described. ``name`` is a Hub id or a
        registered name. Raises InputError for places the model does not have, StackDisturbedError.
        """
        self.check()
        return self._beneath.described(places, name, revision, self._ranks())

    # ------------------------------------------------------------------ changing

    def apply(
        self,
        patch: EditPatch,
        way: Way | None = None,
        force: bool = False,
        allow_unverified: bool = False,
        resources: Mapping[str, Path] | None = None,
        name: str | None = None,
    ) -> Installed:
        """Put a patch on top of the stack.

        Args:
            patch: what to put on.
            way: how low-rank deltas go on; None: merged, but attached to quantised weights.
            force: put it on a base that is not the one it was made for (shapes must fit all the same).
            allow_unverified: put it on weights that cannot be compared with what it was made for.
            resources: role -> local path of what the patch requires.
            name: what the live model is called, compared when weights cannot be.

        Raises:
            BaseMismatchError: wrong base, or one that cannot be verified.
            StackOrderError: it is on already, or its parents are not on, in their order.
            StackDisturbedError, RequirementError, UnknownNameError, InputError: see there. Nothing was changed.
        """
        if way is not None and way not in WAYS:
            raise InputError(f"there is no way {way!r}; it is {' or '.join(WAYS)}")
        ranks = self._ranks()
        how = f"way {way}, force {force}, allow_unverified {allow_unverified}, name {name}"
        with ranks.agree(f"apply {patch.id[:12]} ({how})"):
            self._ready_here()
            check_order(patch, [entry.patch.id for entry in self.patches])
            started = perf_counter()
            names = names_by_parameter(self.model)
            places = baseline.check_places(self.model, patch.base, force, names)
            if not force:
                baseline.check_architecture(self.model, patch.base)
        # of weights that several processes hold all have to ask, so nothing may be refused by one of them here
        digest = partial(self._beneath.digest, ranks=ranks)
        unknown = () if force else baseline.check_digests(patch, places, digest)
        verified = perf_counter()
        with ranks.agree(f"prepare {patch.id[:12]}"):
            unverified = force or baseline.check_unknown(self.model, patch.base, unknown, allow_unverified, name)
            found = baseline.check_requirements(patch.requires, resources or {}, self._files.of)
            entry = self._entry(patch, patch.operations, way, found, unverified, names)
        self._change((*self._entries, entry), names=names)
        self.timings = Timings(verify=verified - started, install=perf_counter() - verified)
        return Installed(patch_id=patch.id, way=entry.way, places=patch.places, unverified=unverified)

    def remove(self, patch: EditPatch | str) -> Removal:
        """Take a patch off, wherever it is on the stack; the others stay, and so do its children, now orphans.

        Raises StackOrderError when it is not on, StackDisturbedError. Nothing was changed then.
        """
        patch_id = patch if isinstance(patch, str) else patch.id
        with self._ranks().agree(f"remove {patch_id[:12]}"):
            self._ready_here()
            if all(entry.id != patch_id for entry in self._entries):
                raise StackOrderError(f"the patch {patch_id[:12]} is not on this model; see stack.patches")
        self._change(tuple(entry for entry in self._entries if entry.id != patch_id))
        orphans = tuple(entry.patch.id for entry in self.patches if patch_id in entry.patch.parents)
        return Removal(patch_id=patch_id, orphans=orphans)

    def clear(self) -> None:
        """Take everything off: the model is the very one it was at first."""
        self.reset_to(())

    def reset_to(self, entries: Sequence[Entry]) -> None:
        """Have exactly these entries (earlier read from ``patches``) on the model, in this order."""
        self._ready()
        self._change(tuple(entries))

    @contextmanager
    def applied(self, patch: EditPatch, **settings: Any) -> Iterator[Installed]:
        """A patch on the model for the length of a block; settings are those of :meth:`apply`."""
        installed = self.apply(patch, **settings)
        try:
            yield installed
        finally:
            if any(entry.id == patch.id for entry in self._entries):
                self.remove(patch)

    @contextmanager
    def provisional(self) -> Iterator[ProvisionalWriter]:
        """A writer whose operations are on top of the stack until the block ends, whatever ends it."""
        self._ready()
        writer = ProvisionalWriter(self)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The base model for the length of a block: base storage swapped in by reference, nothing else acting.

        May be nested. Patches cannot be put on or taken off meanwhile.
        """
        if not self._suspended:
            self.check()
        self._suspended += 1
        try:
            if self._suspended == 1:
                self._show()
            yield
        finally:
            self._suspended -= 1
            if not self._suspended:
                try:
                    self._resume()
                except BaseException:
                    # an interrupt may have come half-way
                    self._show()
                    raise

    def _resume(self) -> None:
        with self._ranks().agree("leave the suspended block"):
            self._slots.check(base_shown=True)
        self._show()

    def _show(self) -> None:
        """The base or the edited model, as the moment asks."""
        if self._suspended:
            self._slots.show_base()
        else:
            self._slots.show_edited()
        self._follow_calls()

    def to(self, *args: Any, **kwargs: Any) -> nn.Module:
        """``model.to(...)`` for a model with patches: moves the model and what the stack keeps, together.

        The patches are put on the moved base anew. Should that fail, the stack is empty, and the error says so.
        Raises InputError for a model that is spread over devices, memory, disk or processes: nothing was moved.
        """
        self._ready()
        if is_dispatched(self.model) or meshes(self.model):
            raise InputError(
                "this model is spread over devices, disk or processes, so it cannot be moved as one; load it again "
                "where it shall be, and apply the patches there"
            )
        entries = self._entries
        self._change(())
        try:
            self.model.to(*args, **kwargs)
        finally:
            try:
                for entry in entries:
                    entry.follow(self.model)
                self._change(entries)
            except Exception as error:
                raise StackDisturbedError(
                    f"the patches could not be put on the moved model ({error}); the stack is empty, apply them again"
                ) from error
        return self.model

    @property
    def routed(self) -> bool:
        """Whether some patch on the model decides prompt by prompt which model answers."""
        return any(entry.routers for entry in self._entries)

    def route(self, prompts: Sequence[str]) -> list[Route]:
        """How each prompt is answered, as the routers on the stack say; plain routes when there are none."""
        routers = [router for entry in self._entries for router in entry.routers] if not self._suspended else []
        return route_prompts(routers, prompts)

    # ------------------------------------------------------------------ inside

    def _ranks(self) -> Ranks:
        """The processes that hold this model together, ready for the next step."""
        return Ranks.of(self.model)

    def _ready(self) -> None:
        with self._ranks().agree("change the stack"):
            self._ready_here()

    def _ready_here(self) -> None:
        if self._suspended:
            raise StackOrderError("the stack is suspended; leave the suspended() block before changing it")
        self._check(base_shown=False)

    def _entry(
        self,
        patch: EditPatch | None,
        operations: Sequence[Operation],
        way: Way | None,
        resources: Mapping[str, Path],
        unverified: bool,
        names: Mapping[int, Sequence[str]] | None = None,
    ) -> Entry:
        provider = patch.method.distribution if patch is not None else None
        return make_entry(
            patch,
            operations,
            way,
            self.model,
            self.scope,
            partial(self._kinds.find, provider=provider),
            resources,
            unverified,
            names,
        )

    def _change(
        self,
        entries: tuple[Entry, ...],
        provisional: bool = False,
        names: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        """Have exactly these entries on the model; computed first, then put on, and undone when that fails."""
        ranks = self._ranks()
        ids = ", ".join((entry.id or "provisional operations")[:12] for entry in entries)
        with ranks.agree(f"have the patches {ids} on the model" if ids else "have no patch on the model"):
            table = self._slots.plan(weights_wanted(entries), provisional, names)
            hung = modules_wanted(entries)
        before, table_before = self._entries, self._slots.table
        try:
            with ranks.agree("install patches"):
                self._slots.install(table)
                self._sites.install(hung)
                self._entries = entries
                self._follow_calls()
        except BaseException:
            self._entries = before
            self._slots.install(table_before)
            self._sites.install(modules_wanted(before))
            self._follow_calls()
            raise

    def _to_follow(self) -> bool:
        return not self._suspended and any(kind.needs_scope for entry in self._entries for kind in entry.kinds)

    def _follow_calls(self) -> None:
        """Have the scope follow calls from outside exactly while a module operation acts that needs it."""
        self._following.set(self._to_follow())
