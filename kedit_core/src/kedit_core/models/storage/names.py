"""Names of a live model's parameters, tied ones together, also where offloading has torn them apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor, nn

from kedit_core.models.storage.offloaded import Entry, declared_ties, offload_of


def names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter -> all its names, first one first.

    Offloaded parameters that are filled from one and the same tensor count as tied: a run leaves them as two objects.
    """
    names: dict[int, list[str]] = {}
    empty: dict[str, int] = {}
    for name, parameter in named_tensors(model, "_parameters", "named_parameters"):
        names.setdefault(id(parameter), []).append(name)
        if parameter.is_meta:
            empty[name] = id(parameter)
    return _joined(model, names, empty) if empty else names


def first_names(model: nn.Module) -> list[str]:
    """Every parameter once, by the name that patches use, in the model's order."""
    return list(dict.fromkeys(names[0] for names in names_by_parameter(model).values()))


def named_tensors(model: nn.Module, held: str, listed: str) -> list[tuple[str, Tensor]]:
    """What ``named_parameters(remove_duplicate=False)`` gives (or ``named_buffers``), several times faster."""
    if getattr(type(model), listed) is not getattr(nn.Module, listed):
        return list(getattr(model, listed)(remove_duplicate=False))
    found: list[tuple[str, Tensor]] = []

    def visit(module: nn.Module, prefix: str) -> None:
        for name, tensor in getattr(module, held).items():
            if tensor is not None:
                found.append((prefix + name, tensor))
        for name, child in module._modules.items():
            if child is not None:
                visit(child, f"{prefix}{name}.")

    visit(model, "")
    return found


def last_entry(model: nn.Module, name: str) -> Entry | None:
    """What an offloaded parameter is filled from; None when it is not offloaded."""
    path, _, leaf = name.rpartition(".")
    offload = offload_of(model, path)
    return None if offload is None else offload.entries(leaf)[-1]


def split_tie(model: nn.Module, names: Sequence[str]) -> str | None:
    """A parameter that transformers ties to one of ``names``, only one of the two being offloaded; None without one."""
    for one, other in declared_ties(model).items():
        for mine, theirs in ((one, other), (other, one)):
            if mine in names and theirs not in names and _is_empty(model, mine) != _is_empty(model, theirs):
                return theirs
    return None


def _is_empty(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    try:
        found = model.get_submodule(path)._parameters.get(leaf)
    except AttributeError:
        return False  # such a model declares a tie of what it was made without
    return found is not None and found.is_meta


def _joined(model: nn.Module, names: dict[int, list[str]], empty: Mapping[str, int]) -> dict[int, list[str]]:
    """The same with the names of offloaded parameters that share a tensor put together."""
    entries = {name: last_entry(model, name) for name in empty}
    ties = declared_ties(model)
    groups: dict[Hashable, list[str]] = {}
    for name, entry in entries.items():
        key: Hashable = ("alone", name) if entry is None else entry.same_as
        declared = entries.get(ties.get(name, ""))
        if declared is not None and entry is not None and entry.now() is None and declared.now() is None:
            # a folder of offloaded weights has a file for each name, tied or not
            key = declared.same_as
        groups.setdefault(key, []).append(name)
    order = {name: place for place, name in enumerate(name for each in names.values() for name in each)}
    for group in groups.values():
        ids = dict.fromkeys(empty[name] for name in group)
        together = sorted({name for one in ids for name in names[one]}, key=order.__getitem__)
        for one in ids:
            names[one] = together
    return names
