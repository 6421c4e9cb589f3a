"""Where a MODEL comes from: a registered name, a local folder, or a Hugging Face id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from kedit_core.errors import InputError, UnknownNameError
from kedit_core.stacks.file import is_stack_file

if TYPE_CHECKING:
    from torch import nn

    from kedit_core.models import ModelView
    from kedit_core.plugins import Host


@frozen(kw_only=True)
class ModelFolder:
    """A model as a local Hugging Face folder.

    Attributes:
        folder: holds config.json, the weights and the tokenizer.
        name: what a patch may record as ``base.name`` (registered name or Hub id); None for a local folder, since a
            path means nothing to anybody else.
        revision: commit of a Hub model.
    """

    folder: Path
    name: str | None = None
    revision: str | None = None


def resolve_model(model: str, host: Host, revision: str | None = None) -> ModelFolder:
    """The folder of ``model``: registered names first, then local folders, then the Hugging Face Hub.

    Raises:
        UnknownNameError: a registered prefix with an unknown name, or a Hub id that cannot be had.
        InputError: a local folder without config.json, or a stack file.
    """
    names = {name for source in host.model_sources() for name in source.names}
    if model in names or (":" in model and model.partition(":")[0] in {name.partition(":")[0] for name in names}):
        return ModelFolder(folder=Path(host.model_source(model).folder(model)), name=model)
    path = Path(model).expanduser()
    if is_stack_file(model):
        raise InputError(
            f"{model} is a stack file, and here a model is wanted; `kedit stack apply` writes it as a model folder"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{model} is a folder without config.json, so it is not a Hugging Face model folder")
        return ModelFolder(folder=path)
    return _from_hub(model, revision, sorted(names))


def resolve_folder(model: str, host: Host) -> Path:
    """Only the folder of :func:`resolve_model`, for commands that stream files."""
    return resolve_model(model, host).folder


def _from_hub(model: str, revision: str | None, registered: list[str]) -> ModelFolder:
    from huggingface_hub import snapshot_download

    known = f"; registered names are {', '.join(registered)}" if registered else ""
    try:
        folder = Path(
            snapshot_download(model, revision=revision, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.ot"])
        )
    except Exception as error:  # the hub client has many kinds of errors; the user needs one sentence
        raise UnknownNameError(
            f"{model!r} is neither a registered name nor a local folder, and it could not be had from the Hugging "
            f"Face Hub ({type(error).__name__}); check the spelling or the network{known}"
        ) from error
    return ModelFolder(folder=folder, name=model, revision=folder.name)


def load_model(source: ModelFolder, *, dtype: Any = None, device: Any = None) -> tuple[Any, Any]:
    """Model (in eval mode) and tokenizer of a folder, in the dtype its config states unless ``dtype`` is given.

    ``dtype``: a torch.dtype or its name. Raises InputError for an unknown dtype, a device that is not there, or a
    folder transformers cannot load.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if isinstance(dtype, str) and dtype != "auto":
        wanted = getattr(torch, dtype, None)
        if wanted not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise InputError(f"{dtype!r} is no dtype that kedit computes in; use float32, bfloat16, float16 or float64")
        dtype = wanted
    _check_device(device)
    from transformers.utils import logging as transformers_logging

    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # loading shows kedit's own progress, or none
    try:
        # left out, trust_remote_code asks on the terminal whether code of the folder shall be run
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, told = auto.from_pretrained(
            source.folder,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a stranger's values, which classes of all kinds check or fall over
        raise InputError(f"transformers cannot load the model in {source.folder}: {_first_line(error)}") from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    if missing := sorted(told["missing_keys"]):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(
            f"the weights in {source.folder} lack {missing[0]!r}{more}, which transformers would fill at random; "
            "complete the folder"
        )
    if device is not None:
        model.to(device)
    return model.eval(), tokenizer


def _check_device(device: Any) -> None:
    """InputError for a device that torch does not know or that this machine does not have; before a model is loaded."""
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(f"the device {str(device)!r} cannot be used ({_first_line(error)}); choose another") from error


def describe_model(model: nn.Module, view: ModelView, name: str | None, revision: str | None = None) -> dict[str, Any]:
    """What a plan or a manifest says of a model: JSON-able."""
    return {
        "model_name": name,
        "revision": revision,
        "architecture": view.shape.architecture,
        "layers": view.num_layers,
        "hidden_size": view.hidden_size,
        "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}),
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
