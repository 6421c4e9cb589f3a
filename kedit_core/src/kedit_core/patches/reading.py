"""The manifest as JSON, read strictly: every fault is found and named by its path.

The JSON has exactly the fields of docs/patch-format.md, and its tensor names are exactly the file's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.patches.manifest import FORMAT, Base, BaseTensor, MethodRef, PrivateRequests, Requirement, State
from kedit_core.patches.operations import (
    DenseDelta,
    LowRankDelta,
    ModuleOperation,
    Operation,
    Owned,
    Replace,
    RouterOperation,
    SparseDelta,
)

if TYPE_CHECKING:
    from kedit_core.patches.format import EditPatch

T = TypeVar("T")

FIELDS = ("format", "method", "hparams", "seed", "parents", "requires", "base", "operations", "state", "requests")
MAX_FAULTS = 20
MAX_FAULT = 500  # characters of one fault, and of its path

_PARAMETER_OPERATIONS: dict[str, type[LowRankDelta | DenseDelta | SparseDelta | Replace]] = {
    cls.type: cls for cls in (LowRankDelta, DenseDelta, SparseDelta, Replace)
}
_KIND_FIELDS = ("type", "kind", "kind_version", "config", "tensors")


def check_version(manifest: Any) -> None:
    """PatchFormatError unless the manifest is of a format version that is read here."""
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int:
        raise PatchFormatError("the manifest does not say which format it has")
    if version != FORMAT:
        raise PatchFormatError(f"it has format {version}, and this kedit reads format {FORMAT}; update kedit-core")


def read_manifest(manifest: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of :class:`EditPatch` for a manifest and the tensors of its file.

    ``tensors`` belong to the caller alone and are taken as they are. Raises PatchFormatError naming every fault.
    """
    check_version(manifest)
    reader = _Reader(tensors=tensors)
    arguments = reader.patch(manifest)
    reader.finish()
    return arguments


@define
class _Reader:
    tensors: Mapping[str, Tensor]
    faults: list[str] = field(factory=list)
    count: int = 0
    used: set[str] = field(factory=set)

    def fault(self, path: str, what: str) -> None:
        """Note a fault; of very many only the first are kept."""
        self.count += 1
        if self.count <= MAX_FAULTS:
            self.faults.append(f"{what[:MAX_FAULT]} @ {path[:MAX_FAULT]}")

    def finish(self) -> None:
        for name in sorted(set(self.tensors) - self.used):
            self.fault(name, "tensor that nothing in the manifest uses")
        if self.faults:
            more = f"; and {self.count - MAX_FAULTS} more" if self.count > MAX_FAULTS else ""
            raise PatchFormatError("; ".join(self.faults) + more)

    def build(self, path: str, make: Callable[[], T]) -> T | None:
        """What ``make`` gives, or None with its refusal noted."""
        try:
            return make()
        except PatchFormatError as error:
            self.fault(path, str(error))
        return None

    def fields(self, value: Any, path: str, names: tuple[str, ...]) -> dict[str, Any] | None:
        """``value`` when it is an object with exactly these fields."""
        if not isinstance(value, dict):
            self.fault(path, "not an object")
            return None
        missing, unknown = sorted(set(names) - set(value)), sorted(set(value) - set(names))
        for name in missing:
            self.fault(f"{path}.{name}", "required field missing")
        for name in unknown:
            self.fault(f"{path}.{name[:80]}", "unknown field")
        return None if missing or unknown else value

    def items(self, value: Any, path: str) -> list[Any]:
        if isinstance(value, list):
            return value
        self.fault(path, "not a list")
        return []

    def strings(self, value: Any, path: str) -> list[str]:
        found = self.items(value, path)
        if all(isinstance(item, str) for item in found):
            return found
        self.fault(path, "not a list of strings")
        return []

    def mapping(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.fault(path, "not an object")
        return {}

    # ------------------------------------------------------------------ the manifest, part by part

    def patch(self, manifest: Any) -> dict[str, Any]:
        root = self.fields(manifest, "$", FIELDS)
        if root is None:
            return {}
        state = self.fields(root["state"], "$.state", ("config", "tensors")) or {"config": {}, "tensors": {}}
        state_tensors = self.named_tensors(state["tensors"], "$.state.tensors", "state.")
        return {
            "method": self.record(root["method"], "$.method", MethodRef, ("name", "distribution", "version")),
            "hparams": self.mapping(root["hparams"], "$.hparams"),
            "seed": root["seed"],
            "parents": self.strings(root["parents"], "$.parents"),
            "requires": [
                self.record(item, f"$.requires[{i}]", Requirement, ("role", "name", "revision", "sha256"))
                for i, item in enumerate(self.items(root["requires"], "$.requires"))
            ],
            "base": self.base(root["base"]),
            "operations": [
                self.operation(item, i) for i, item in enumerate(self.items(root["operations"], "$.operations"))
            ],
            "state": self.build(
                "$.state", lambda: State(self.mapping(state["config"], "$.state.config"), state_tensors)
            ),
            "requests": self.requests(root["requests"]),
        }

    def record(self, value: Any, path: str, cls: Callable[..., T], names: tuple[str, ...]) -> T | None:
        found = self.fields(value, path, names)
        return None if found is None else self.build(path, lambda: cls(**found))

    def base(self, value: Any) -> Base | None:
        names = ("name", "revision", "architecture", "config_sha256", "tensors")
        if (found := self.fields(value, "$.base", names)) is None:
            return None
        tensors = {
            name: self.base_tensor(item, f"$.base.tensors.{name[:200]}")
            for name, item in self.mapping(found["tensors"], "$.base.tensors").items()
        }
        return self.build("$.base", lambda: Base(**{**found, "tensors": tensors}))

    def base_tensor(self, value: Any, path: str) -> BaseTensor | None:
        if (found := self.fields(value, path, ("shape", "layout", "aliases", "sha256"))) is None:
            return None
        shape = self.items(found["shape"], f"{path}.shape")
        aliases = self.strings(found["aliases"], f"{path}.aliases")
        sha256 = self.mapping(found["sha256"], f"{path}.sha256")
        return self.build(path, lambda: BaseTensor(shape=shape, layout=found["layout"], aliases=aliases, sha256=sha256))

    def operation(self, value: Any, index: int) -> Operation | None:
        path = f"$.operations[{index}]"
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and (cls := _PARAMETER_OPERATIONS.get(kind)):
            axis = ("axis",) if cls is SparseDelta else ()
            if (found := self.fields(value, path, ("type", "place", *axis, "tensors"))) is None:
                return None
            tensors = self.named_tensors(found["tensors"], f"{path}.tensors", f"{index}.")
            if sorted(tensors) != sorted(cls.roles):
                self.fault(f"{path}.tensors", f"{kind} needs the tensors {', '.join(cls.roles)}, no others")
                return None
            arguments: dict[str, Any] = {name: found[name] for name in ("place", *axis)} | tensors
            return self.build(path, lambda: cls(**arguments))
        if kind == "module":
            if (found := self.fields(value, path, ("places", *_KIND_FIELDS))) is None:
                return None
            places = self.strings(found["places"], f"{path}.places")
            shared = self.kind_arguments(found, path, index)
            return self.build(path, lambda: ModuleOperation(places=places, **shared))
        if kind == "router":
            if (found := self.fields(value, path, _KIND_FIELDS)) is None:
                return None
            shared = self.kind_arguments(found, path, index)
            return self.build(path, lambda: RouterOperation(**shared))
        known = ", ".join((*_PARAMETER_OPERATIONS, "module", "router"))
        self.fault(f"{path}.type", f"not a type of operation of format {FORMAT} ({known})")
        return None

    def kind_arguments(self, found: dict[str, Any], path: str, index: int) -> dict[str, Any]:
        return {
            "kind": found["kind"],
            "kind_version": found["kind_version"],
            "config": self.mapping(found["config"], f"{path}.config"),
            "tensors": self.named_tensors(found["tensors"], f"{path}.tensors", f"{index}."),
        }

    def named_tensors(self, value: Any, path: str, prefix: str) -> dict[str, Owned]:
        """role -> tensor; the file's name of a tensor is always the prefix and the role."""
        found = {}
        for role, name in self.mapping(value, path).items():
            if name != prefix + role:
                self.fault(f"{path}.{role[:80]}", f"tensor name that is not {(prefix + role[:120])!r}")
            elif name not in self.tensors:
                self.fault(f"{path}.{role[:80]}", "tensor that the file does not hold")
            else:
                self.used.add(name)
                found[role] = Owned(self.tensors[name])
        return found

    def requests(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.record(value, "$.requests", PrivateRequests, ("sha256", "count"))
        return self.items(value, "$.requests")


def write_manifest(patch: EditPatch) -> dict[str, Any]:
    """The manifest of a patch, in plain JSON types; the inverse of :func:`read_manifest`."""
    requests = patch.requests
    return {
        "format": FORMAT,
        "method": {
            "name": patch.method.name,
            "distribution": patch.method.distribution,
            "version": patch.method.version,
        },
        "hparams": dict(patch.hparams),
        "seed": patch.seed,
        "parents": list(patch.parents),
        "requires": [
            {"role": need.role, "name": need.name, "revision": need.revision, "sha256": need.sha256}
            for need in patch.requires
        ],
        "base": {
            "name": patch.base.name,
            "revision": patch.base.revision,
            "architecture": patch.base.architecture,
            "config_sha256": patch.base.config_sha256,
            "tensors": {
                name: {
                    "shape": list(tensor.shape),
                    "layout": tensor.layout,
                    "aliases": list(tensor.aliases),
                    "sha256": dict(tensor.sha256),
                }
                for name, tensor in patch.base.tensors.items()
            },
        },
        "operations": [_write_operation(operation, i) for i, operation in enumerate(patch.operations)],
        "state": {
            "config": dict(patch.state.config),
            "tensors": {name: f"state.{name}" for name in patch.state.tensors},
        },
        "requests": (
            {"sha256": requests.sha256, "count": requests.count}
            if isinstance(requests, PrivateRequests)
            else [dict(fact) for fact in requests]
        ),
    }


def _write_operation(operation: Operation, index: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": operation.type, "tensors": {role: f"{index}.{role}" for role in operation.tensors}}
    if isinstance(operation, ModuleOperation | RouterOperation):
        entry |= {"kind": operation.kind, "kind_version": operation.kind_version, "config": dict(operation.config)}
        if isinstance(operation, ModuleOperation):
            entry["places"] = list(operation.places)
    else:
        entry["place"] = operation.place
        if isinstance(operation, SparseDelta):
            entry["axis"] = operation.axis
    return entry
