"""A folder with a PEFT adapter: its settings and tensors, nothing of it believed unchecked and nothing of it run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.files import read_object
from kedit_peft.settings import ADVICE, AdapterSettings, short
from kedit_peft.writing import CONFIG, PREFIX, WEIGHTS

_LONGEST_CONFIG = 1 << 20
_MOST_TENSORS = 65_536
_LONGEST_NAME = 1024
_FLOATS = ("F16", "BF16", "F32", "F64")
_COPY = "copy"
_PARTS: Mapping[str, str] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".base_layer.weight": _COPY,
    ".weight": _COPY,
}


@frozen(kw_only=True)
class LoraPair:
    """The two tensors of a module, by their names in the file, and their shapes there.

    ``embedding``: they are those of an embedding, whose change is ``(B A)^T``.
    """

    module: str
    a: str
    b: str
    a_shape: tuple[int, int]
    b_shape: tuple[int, int]
    embedding: bool

    @property
    def rank(self) -> int:
        return self.a_shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the change, in [out, in] terms."""
        out, inner = self.b_shape[0], self.a_shape[1]
        return (inner, out) if self.embedding else (out, inner)


@frozen(kw_only=True)
class PeftFolder:
    """An adapter on disk: settings and shapes are checked, tensors are read on demand.

    Attributes:
        pairs: the factors, by module.
        copies: modules whose own weight PEFT has saved too (it does so with embeddings and heads) -> its name and shape
            in the file.
    """

    folder: Path
    settings: AdapterSettings
    pairs: tuple[LoraPair, ...] = field(repr=False)
    copies: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> PeftFolder:
        """Read adapter_config.json and the header of adapter_model.safetensors.

        Raises:
            InputError: the folder has no adapter that kedit reads; the message says what to do instead.
        """
        path = Path(folder)
        try:
            settings = AdapterSettings.read(_config(path))
            pairs, copies = _modules(_shapes(path / WEIGHTS), settings)
        except InputError as error:
            raise InputError(f"{folder} cannot be made a patch: {error}") from error
        return cls(folder=path, settings=settings, pairs=pairs, copies=copies)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the file."""
        try:
            with safe_open(self.folder / WEIGHTS, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.folder / WEIGHTS} cannot be read ({error}); get the adapter again") from error
        return tensor


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"there is no {CONFIG} in it; give the folder of a PEFT adapter")
    try:
        return read_object(path, _LONGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(f"{CONFIG} cannot be read ({str(error)[:200]}); get the adapter again") from error


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the file."""
    if not path.is_file():
        if any(path.parent.glob("*.bin")):
            raise InputError(
                "its tensors are pickled (.bin), and kedit opens no pickle; load it with PEFT and save it again, which "
                f"writes {WEIGHTS}"
            )
        raise InputError(f"there is no {WEIGHTS} in it; get the adapter again")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise InputError(f"{WEIGHTS} has {len(names)} tensors; the limit is {_MOST_TENSORS}")
            slices = {name: file.get_slice(name) for name in names}
            for name, part in slices.items():
                if part.get_dtype() not in _FLOATS:
                    raise InputError(f"{short(name)} is of dtype {part.get_dtype()}; factors are {', '.join(_FLOATS)}")
            return {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{WEIGHTS} cannot be read ({str(error)[:200]}); get the adapter again") from error


def _modules(
    shapes: Mapping[str, tuple[int, ...]], settings: AdapterSettings
) -> tuple[tuple[LoraPair, ...], dict[str, tuple[str, tuple[int, ...]]]]:
    """The factors and the copies of base weights that tensors of these names and shapes are."""
    found: dict[str, dict[str, str]] = {}
    copies = {}
    for name, shape in shapes.items():
        module, part = _split(name)
        if part == _COPY:
            copies[module] = (name, shape)
            continue
        if len(shape) != 2 or 0 in shape:
            raise InputError(f"{short(name)} has the shape {list(shape)}; factors have two sizes, none of them 0")
        found.setdefault(module, {})[part] = name
    if not found:
        raise InputError(f"{WEIGHTS} has no factors; get the adapter again")
    return tuple(_pair(module, parts, shapes, settings) for module, parts in found.items()), copies


def _split(name: str) -> tuple[str, str]:
    """The module and the part that a tensor's name tells."""
    for ending, part in _PARTS.items():
        module = name.removeprefix(PREFIX).removesuffix(ending)
        if name.startswith(PREFIX) and name.endswith(ending) and module and "lora_" not in module:
            if len(name) > _LONGEST_NAME or not name.isprintable():
                raise InputError(
                    f"a tensor's name has up to {_LONGEST_NAME} printable characters, unlike {short(name)}"
                )
            return module, part
    raise InputError(f"the tensor {short(name)} is no factor of a LoRA; {ADVICE}")


def _pair(
    module: str, parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], settings: AdapterSettings
) -> LoraPair:
    embedding = set(parts) == {"embedding_A", "embedding_B"}
    if not embedding and set(parts) != {"A", "B"}:
        raise InputError(
            f"{short(module)} has {', '.join(sorted(parts))} and not one A and one B; get the adapter again"
        )
    a, b = (parts["embedding_A"], parts["embedding_B"]) if embedding else (parts["A"], parts["B"])
    (rank, inner), (out, columns) = shapes[a], shapes[b]
    if columns != rank:
        raise InputError(f"{short(a)} is {[rank, inner]} and {short(b)} is {[out, columns]}; their ranks must agree")
    if rank not in {settings.r, *settings.ranks.values()}:
        raise InputError(
            f"{short(module)} has rank {rank}, which {CONFIG} does not have; the two do not belong together"
        )
    return LoraPair(module=module, a=a, b=b, a_shape=(rank, inner), b_shape=(out, columns), embedding=embedding)
