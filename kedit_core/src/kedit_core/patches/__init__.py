"""Patches: the file format, the operations, and the stack that puts them on a live model."""

from kedit_core.patches.digests import config_digest, digests_of, model_digest, path_digest, tensor_digest
from kedit_core.patches.format import (
    FORMAT,
    Base,
    BaseTensor,
    EditPatch,
    Inspection,
    MethodRef,
    PrivateRequests,
    Requirement,
    State,
    inspect,
)
from kedit_core.patches.kinds import LiveContext, ModuleKind, Route, RoutedModel, RouterKind
from kedit_core.patches.operations import (
    DenseDelta,
    LowRankDelta,
    ModuleOperation,
    Operation,
    Replace,
    RouterOperation,
    SparseDelta,
    WeightOperation,
)
from kedit_core.patches.stack import PatchStack, Removal, Timings

__all__ = [
    "FORMAT",
    "Base",
    "BaseTensor",
    "DenseDelta",
    "EditPatch",
    "Inspection",
    "LiveContext",
    "LowRankDelta",
    "MethodRef",
    "ModuleKind",
    "ModuleOperation",
    "Operation",
    "PatchStack",
    "PrivateRequests",
    "Removal",
    "Replace",
    "Requirement",
    "Route",
    "RoutedModel",
    "RouterKind",
    "RouterOperation",
    "SparseDelta",
    "State",
    "Timings",
    "WeightOperation",
    "config_digest",
    "digests_of",
    "inspect",
    "model_digest",
    "path_digest",
    "tensor_digest",
]
