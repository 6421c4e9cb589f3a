"""Where models come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedit_core.editing.sources import ModelFolder, load_model
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder: Path = tmp_path_factory.mktemp("model")
    for part in tiny("gpt2"):
        part.save_pretrained(folder)
    return ModelFolder(folder=folder)


@pytest.mark.parametrize("device", ["nonsense", "cuda:9999", "cuda:-3"])
def test_a_device_that_is_not_there_is_refused(source: ModelFolder, device: str) -> None:
    with pytest.raises(InputError, match=rf"the device '{device}' cannot be used \(.*\); choose another"):
        load_model(source, device=device)


@pytest.mark.parametrize("dtype", ["int8", "nonsense", "float8_e4m3fn", "complex64"])
def test_a_dtype_that_cannot_be_computed_in_is_refused(source: ModelFolder, dtype: str) -> None:
    with pytest.raises(InputError, match=f"'{dtype}' is no dtype that kedit computes in; use float32"):
        load_model(source, dtype=dtype)


def test_dtype_and_device_by_name(source: ModelFolder) -> None:
    model, _ = load_model(source, dtype="bfloat16", device="cpu")
    assert str(model.dtype) == "torch.bfloat16" and model.device.type == "cpu" and not model.training
