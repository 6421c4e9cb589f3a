"""A patch in a few lines for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kedit_core.patches.manifest import PrivateRequests
from kedit_core.patches.operations import LowRankDelta, ModuleOperation, Operation, RouterOperation

if TYPE_CHECKING:
    from kedit_core.patches.format import EditPatch


def describe(patch: EditPatch) -> str:
    """Id, method, base, operations and requests of a patch, one idea a line."""
    method, base = patch.method, patch.base
    where = base.architecture + (f" ({base.name})" if base.name else "")
    lines = [
        f"patch {patch.id[:12]}, {patch.size} bytes",
        f"method {method.name} ({method.distribution} {method.version})",
        f"base {where}, {len(base.tensors)} tensor{'s' * (len(base.tensors) != 1)} described",
    ]
    for text, count in Counter(describe_operation(operation) for operation in patch.operations).items():
        lines.append(text if count == 1 else f"{text}, {count} times")
    if patch.parents:
        lines.append("on top of " + ", ".join(parent[:12] for parent in patch.parents))
    lines += [f"needs {need.role}" + (f" {need.name}" if need.name else "") for need in patch.requires]
    if isinstance(patch.requests, PrivateRequests):
        lines.append(f"{patch.requests.count} requests, kept private")
    else:
        lines += [f"{fact['prompt']} -> {fact['target_new']}" for fact in patch.requests[:5]]
        if len(patch.requests) > 5:
            lines.append(f"and {len(patch.requests) - 5} more requests")
    return "\n".join(lines)


def describe_operation(operation: Operation) -> str:
    """One operation on one line."""
    if isinstance(operation, RouterOperation):
        return f"router {operation.kind}"
    if isinstance(operation, ModuleOperation):
        return f"module {operation.kind} at {', '.join(operation.places)}"
    rank = f" of rank {operation.rank}" if isinstance(operation, LowRankDelta) else ""
    return f"{operation.type}{rank} at {operation.place}"
