"""Files of ConvAdapter and the bottleneck adapters do not depend on what the adapter was called."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from pretrained_kinds import KINDS, run, stirred
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from holdfast.adapters import BottleneckConfig, ConvAdapterConfig
from holdfast.adapters.adapted_model import AdaptedModel
from holdfast.errors import HoldfastError

METHODS: dict[str, dict[str, Any]] = {
    "conv": {"cls": ConvAdapterConfig},
    "conv-shared": {"cls": ConvAdapterConfig, "position": "parallel", "shared": True, "se_pool": "attention"},
    "houlsby": {"cls": BottleneckConfig, "style": "houlsby", "width": 3, "scale": "learned"},
    "houlsby-shared": {"cls": BottleneckConfig, "style": "houlsby", "width": 3, "shared": True},
    "bottleneck-layer": {"cls": BottleneckConfig, "style": "layer", "width": 3},
}
# Most are parts of parameters' names: a layer's number, places, parts of a block.
NAMES = ["mine", "default", "0", "layer", "feed_forward", "down", "attention"]
# Attention over time differs in the last bit from run to run of one model, by where its tensors lie in memory.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
every_method = pytest.mark.parametrize("method", METHODS)
KIND = KINDS["bert"]
FILE = "adapter_model.safetensors"


def config(method: str) -> PeftConfig:
    """A method's configuration."""
    settings = dict(METHODS[method])
    return settings.pop("cls")(**settings)


def adapted(method: str, name: str) -> PeftModel:
    """A model whose adapter does something."""
    return stirred(get_peft_model(KIND.build(), config(method), name))


def output(model: Any) -> Tensor:
    """What the model gives."""
    with torch.no_grad():
        return run(model, KIND)


def folder(root: Path, name: str) -> Path:
    """Where PEFT saves an adapter of that name."""
    return root if name == "default" else root / name


def save_as_before(model: PeftModel, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save by PEFT's own removal of names, as files were written that hold the adapter's name."""
    with monkeypatch.context() as patch:
        patch.setattr(AdaptedModel, "_remove_adapter_name_from_key", vars(BaseTuner)["_remove_adapter_name_from_key"])
        model.save_pretrained(root)


@every_method
@pytest.mark.parametrize("saved_as", NAMES)
def test_a_file_is_loaded_under_any_name(method: str, saved_as: str, tmp_path: Path) -> None:
    model = adapted(method, saved_as)
    expected = output(model)
    assert not torch.equal(expected, output(KIND.build()))
    model.save_pretrained(tmp_path)
    written = load_file(folder(tmp_path, saved_as) / FILE)
    for name in {"default", "0", "down", saved_as}:
        loaded = PeftModel.from_pretrained(KIND.build(), folder(tmp_path, saved_as), adapter_name=name)
        assert_close(get_peft_model_state_dict(loaded, adapter_name=name), written, rtol=0, atol=0)
        assert_close(output(loaded), expected, **CLOSE)


@every_method
@pytest.mark.parametrize("saved_as", NAMES)
def test_files_with_the_adapters_name_are_read_too(
    method: str, saved_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(method, saved_as)
    save_as_before(model, saved_as, tmp_path, monkeypatch)
    assert any(f"_blocks.{saved_as}." in key for key in load_file(folder(tmp_path, saved_as) / FILE))
    for name in ("default", saved_as):
        loaded = PeftModel.from_pretrained(KIND.build(), folder(tmp_path, saved_as), adapter_name=name)
        assert_close(output(loaded), output(model), **CLOSE)


@every_method
@pytest.mark.parametrize("beside", ["second", "0", "layer", "feed_forward"])
def test_adapters_beside_each_other_are_loaded_saved_and_deleted(method: str, beside: str, tmp_path: Path) -> None:
    model = adapted(method, "default")
    first = output(model)
    other = stirred(get_peft_model(KIND.build(), config(method), "mine"), seed=2)
    second = output(other)
    assert not torch.equal(first, second)
    other.save_pretrained(tmp_path / "other")
    model.load_adapter(tmp_path / "other" / "mine", beside)
    assert_close(output(model), first, **CLOSE)
    model.set_adapter(beside)
    assert_close(output(model), second, **CLOSE)
    model.save_pretrained(tmp_path / "both")
    for where, name, expected in ((tmp_path / "both", "x", first), (tmp_path / "both" / beside, "y", second)):
        loaded = PeftModel.from_pretrained(KIND.build(), where, adapter_name=name)
        assert_close(output(loaded), expected, **CLOSE)
    model.delete_adapter("default")
    assert_close(output(model), second, **CLOSE)
    assert not any("_blocks.default." in key for key in model.state_dict())


@pytest.mark.parametrize("method", ["conv", "houlsby"])  # a shared block lies in the file once, for PEFT to give out
@pytest.mark.parametrize("name", ["default", "zz"])
def test_transformers_own_loading_reads_the_files(method: str, name: str, tmp_path: Path) -> None:
    model = adapted(method, "mine")
    model.save_pretrained(tmp_path)
    plain = KIND.build()
    plain.load_adapter(str(tmp_path / "mine"), name)
    assert_close(output(plain), output(model), **CLOSE)


@every_method
def test_a_file_that_lacks_a_parameter_is_refused_in_words(method: str, tmp_path: Path) -> None:
    model = adapted(method, "mine")
    model.save_pretrained(tmp_path)
    file = tmp_path / "mine" / FILE
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file)
    with pytest.raises(HoldfastError, match="are not in its file") as refused:
        PeftModel.from_pretrained(KIND.build(), tmp_path / "mine", adapter_name="again")
    assert lost.rpartition("_blocks.")[2] in str(refused.value)
    before = output(model)
    with pytest.raises(HoldfastError, match="are not in its file"):
        model.load_adapter(tmp_path / "mine", "again")
    assert_close(output(model), before, **CLOSE)


def test_a_file_for_more_layers_than_it_holds_is_refused(tmp_path: Path) -> None:
    settings = config("houlsby")
    settings.layers_to_transform = [0]
    stirred(get_peft_model(KIND.build(), settings)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"layers_to_transform": None}))
    with pytest.raises(HoldfastError, match=r"10 of the 20 (.|\n)*layer\.1\."):
        PeftModel.from_pretrained(KIND.build(), tmp_path)


def test_a_changed_state_that_hides_an_adapters_parameters_is_refused() -> None:
    model = adapted("houlsby", "default")
    model.add_adapter("0", config("houlsby"))
    whole = get_peft_model_state_dict(model)
    given = get_peft_model_state_dict(model, state_dict=model.state_dict())
    assert given.keys() == whole.keys()
    assert len(whole) == 20
    gathered = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(HoldfastError, match="another adapter's"):
        get_peft_model_state_dict(model, state_dict=gathered)


def test_a_name_with_dots_is_refused_in_words() -> None:
    with pytest.raises(HoldfastError, match=r"'a\.b'(.|\n)*'a_b'"):
        get_peft_model(KIND.build(), config("houlsby"), "a.b")
    model = adapted("conv", "default")
    with pytest.raises(HoldfastError, match=r"'a\.b'"):
        model.add_adapter("a.b", config("conv"))
    assert list(model.peft_config) == ["default"]
