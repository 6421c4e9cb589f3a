"""A model folder that stays on disk: its configuration and its weight files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.files import read_object
from kedit_core.folders._shards import Entry, Shard

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_JSON_LIMIT = 64 << 20


@frozen
class Checkpoint:
    """The weight files of a local Hugging Face folder.

    Attributes:
        shards: by file name, in the order of the index.
        file_of: stored tensor -> file name.
    """

    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Shard]
    file_of: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config and headers; no weight is read.

        Raises:
            InputError: not a model folder, or weights that cannot be edited on disk (pickled, quantised, with an
                adapter beside); the message says what to do instead.
        """
        config = read_json(folder / "config.json", f"{folder} is not a Hugging Face model folder")
        _refuse_what_cannot_be_edited(folder, config)
        shards = {name: Shard.open(folder / name) for name in _weight_files(folder, config)}
        file_of: dict[str, str] = {}
        for name, shard in shards.items():
            for key in shard.entries:
                if key in file_of:
                    raise InputError(f"{folder} holds tensor {key} in both {file_of[key]} and {name}; remove one")
                file_of[key] = name
        return cls(folder, config, shards, file_of)

    def shard(self, key: str) -> Shard:
        """The file a stored tensor is in."""
        return self.shards[self.file_of[key]]

    def entry(self, key: str) -> Entry:
        """What the header says of a stored tensor."""
        return self.shard(key).entries[key]


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON object from a file of bounded size; InputError, beginning with ``otherwise``, when there is none."""
    try:
        return read_object(path, _JSON_LIMIT)
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{otherwise}: {path.name} cannot be read ({reason})") from error


def _refuse_what_cannot_be_edited(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{folder} holds quantised weights, which cannot take an edit exactly; apply the patch to the model it was "
            "quantised from and quantise the result, or put it on the loaded model in the attached way"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} has a PEFT adapter beside its weights; merge the adapter first")


def _weight_files(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Names of the files that transformers would read, in its order of preference."""
    chosen = config.get("transformers_weights")
    if chosen is None:
        chosen = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if chosen is None:
        if any(folder.glob("*.bin")):
            raise InputError(
                f"{folder} holds pickled weights (.bin), which kedit never opens; convert it first by loading it with "
                "transformers and calling save_pretrained on a new folder"
            )
        raise InputError(f"{folder} holds no {SINGLE} and no {INDEX}, so there are no weights to edit")
    if not str(chosen).endswith(".json"):
        return [_inside(str(chosen), folder)]
    weight_map = read_json(folder / _inside(str(chosen), folder), f"{folder} has a broken index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder} has a broken index: {chosen} has no weight_map")
    return list(dict.fromkeys(_inside(str(name), folder) for name in weight_map.values()))


def _inside(name: str, folder: Path) -> str:
    """``name``, unless it leads out of the folder."""
    if Path(name).name != name:
        raise InputError(f"{folder} names a weight file {name!r} that is not directly in the folder")
    return name
