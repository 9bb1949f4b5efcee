"""What ConvAdapter and the bottleneck adapters obey on every kind of model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from pretrained_kinds import KINDS, drawn, run, stirred
from torch.testing import assert_close

from holdfast.adapters import BottleneckConfig, ConvAdapterConfig
from holdfast.adapters.gradients import require_gradients
from holdfast.errors import HoldfastError

METHODS: dict[str, dict[str, Any]] = {
    "conv": {"cls": ConvAdapterConfig},
    "conv-attention": {"cls": ConvAdapterConfig, "position": "attention", "scale": "learned"},
    "conv-parallel": {"cls": ConvAdapterConfig, "position": "parallel", "mixing": 4, "se_reduction": None},
    "houlsby": {"cls": BottleneckConfig, "style": "houlsby", "width": 3},
    "pfeiffer": {"cls": BottleneckConfig, "norm": "rms", "scale": "learned"},
    "parallel": {"cls": BottleneckConfig, "style": "parallel", "activation": "gelu", "scale": 4.0},
    "bottleneck-layer": {"cls": BottleneckConfig, "style": "layer", "shared": True},
}


def config(method: str) -> PeftConfig:
    """A method's configuration."""
    settings = dict(METHODS[method])
    return settings.pop("cls")(**settings)


every_kind = pytest.mark.parametrize("name", KINDS)
VARIED = ("wav2vec2", "whisper", "bert", "opt")  # sublayers of each form


PAIRS = [(name, method) for name in KINDS for method in METHODS if name in VARIED or method in ("conv", "houlsby")]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_identity_at_the_start_then_saved_loaded_switched_and_taken_off(
    name: str, method: str, tmp_path: Path
) -> None:
    kind = KINDS[name]
    bare = kind.build().requires_grad_(False)  # WavLM's attention rounds in another way where a gradient is wanted
    with torch.no_grad():
        base = run(bare, kind)
        model = get_peft_model(copy.deepcopy(bare), config(method))
        assert_close(run(model, kind), base, rtol=0, atol=0)
        first = run(stirred(model), kind)
        assert not torch.equal(first, base)
        with model.disable_adapter():
            assert_close(run(model, kind), base, rtol=0, atol=0)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path, is_trainable=True)
        assert_close(run(loaded, kind), first, rtol=0, atol=0)
        model.add_adapter("second", config(method))
        assert_close(run(model, kind), first, rtol=0, atol=0)
        model.set_adapter("second")
        assert_close(run(model, kind), base, rtol=0, atol=0)
        second = run(stirred(model, seed=2), kind)
        model.set_adapter("default")
        assert_close(run(model, kind), first, rtol=0, atol=0)
        model.set_adapter("second")
        model.delete_adapter("default")
        assert_close(run(model, kind), second, rtol=0, atol=0)
        with pytest.raises(HoldfastError, match="can't be merged"):
            model.merge_and_unload()
        taken_off = model.unload()
        assert_close(run(taken_off, kind), base, rtol=0, atol=0)
    assert list(taken_off.state_dict()) == list(bare.state_dict())


TRAINED = [name for name in KINDS if name not in ("fastspeech2_conformer", "vits")]  # those need targets to train


CAN_CHECKPOINT = [name for name in TRAINED if name != "albert"]  # it supports no checkpoints
CHECKPOINTED = [
    (n, m) for n in CAN_CHECKPOINT for m in ("conv", "houlsby", "conv-parallel") if n in VARIED or m == "houlsby"
]


@pytest.mark.parametrize(("name", "method"), CHECKPOINTED)
def test_gradients_are_the_same_with_checkpoints(name: str, method: str) -> None:
    kind = KINDS[name]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for way in ("plain", "reentrant", "whole"):
        model = get_peft_model(kind.build(), config(method)).train()
        stirred(model)
        if way != "plain":
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": way == "reentrant"})
        output = run(model, kind)
        (output * drawn(*output.shape)).sum().backward()
        require_gradients(model)
        found[way] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert max(float(gradient.abs().max()) for gradient in found["plain"].values()) > 1e-3
    for way in ("reentrant", "whole"):
        assert found[way].keys() == found["plain"].keys()
        assert_close(found[way], found["plain"], rtol=1e-3, atol=1e-4)


@every_kind
@pytest.mark.parametrize("method", ["conv", "houlsby"])
def test_everything_trainable_has_a_gradient_at_the_first_step(name: str, method: str) -> None:
    kind = KINDS[name]
    model = get_peft_model(kind.build(), config(method))
    run(model, kind).square().mean().backward()
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("_blocks.default." in n for n in trainable)
    require_gradients(model)


@every_kind
def test_a_few_steps_lower_the_loss(name: str) -> None:
    kind = KINDS[name]
    model = get_peft_model(kind.build(), config("conv"))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = run(model, kind).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_hidden_states_hold_what_adapters_added() -> None:
    kind = KINDS["vit"]
    model = stirred(get_peft_model(kind.build(), config("conv")))
    with torch.no_grad():
        states = model(**kind.inputs(), output_hidden_states=True).hidden_states
        layer = model.get_base_model().layers[0]
        expected = layer(states[0])
    assert len(states) == 3
    assert_close(states[1], expected, rtol=0, atol=0)


def test_base_layers_keep_their_names() -> None:
    from holdfast.targets import base_layers, canonical

    bare = KINDS["bert"].build()
    expected = list(base_layers(bare))
    names = [name for name, _ in bare.named_parameters()]
    model = get_peft_model(bare, config("houlsby"))
    assert list(base_layers(model)) == expected
    assert [canonical(n) for n, _ in model.named_parameters() if "_blocks." not in n] == names


@pytest.mark.parametrize("name", ["llama", "wav2vec2"])
def test_half_precision_models_carry_float32_adapters(name: str) -> None:
    kind = KINDS[name]
    bare = kind.build().requires_grad_(False).bfloat16()
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in kind.inputs().items()}
    with torch.no_grad():
        base = run(bare, kind, **given)
        model = get_peft_model(bare, config("conv-attention"))
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert_close(run(model, kind, **given), base, rtol=0, atol=0)
        changed = run(stirred(model), kind, **given)
        assert changed.dtype == torch.bfloat16
        assert not torch.equal(changed, base)
        assert_close(run(copy.deepcopy(model), kind, **given), changed, rtol=0, atol=0)
