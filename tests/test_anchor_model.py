"""An anchor belongs to one model, wrapped, cast or not; any other is refused with what differs."""

from typing import Any

import pytest
import torch
from adapted import adapt, lora, move
from networks import NETWORKS
from torch import nn

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.quadratic import Penalty

LLAMA = NETWORKS["llama"]


def anchor_of(model: nn.Module, **options: Any) -> Anchor:
    """A Kronecker anchor of any llama."""
    return Anchor.estimate(model, LLAMA.batches(2), progress=False, **options)


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    """The network's own anchor."""
    return anchor_of(LLAMA.build())


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_right_model_is_accepted(anchor: Anchor, wrapped: bool) -> None:
    anchor.check(move(adapt("lora", LLAMA)) if wrapped else LLAMA.build())


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_first_tensor_that_differs_is_named(anchor: Anchor, wrapped: bool) -> None:
    model = adapt("lora", LLAMA) if wrapped else LLAMA.build()
    weights = dict(model.named_parameters())
    for name, parameter in weights.items():
        if "layers.1.mlp" in name and "lora" not in name:
            with torch.no_grad():
                parameter[0, 0] += 1e-12
    with pytest.raises(HoldfastError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight differs"):
        anchor.check(model)
    if wrapped:
        with pytest.raises(HoldfastError, match=r"model\.layers\.1\.mlp\.\w+\.weight differs"):
            Penalty(model, anchor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("born", [torch.float32, torch.bfloat16])
def test_a_cast_model_is_the_same_model(dtype: torch.dtype, born: torch.dtype) -> None:
    anchored = anchor_of(LLAMA.build().to(born))
    anchored.check(LLAMA.build().to(dtype))
    Penalty(lora(LLAMA, LLAMA.build().to(dtype)), anchored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cast_model_that_was_trained_is_another(anchor: Anchor, dtype: torch.dtype) -> None:
    model = LLAMA.build().requires_grad_(True)
    trained = move(model, size=0.003)  # a hundredth of a typical weight
    with pytest.raises(HoldfastError, match="differs from the anchored weight"):
        anchor.check(trained.to(dtype))


def test_a_merged_model_is_another(anchor: Anchor) -> None:
    model: Any = move(adapt("lora", LLAMA))
    with pytest.raises(HoldfastError, match="differs"):
        anchor.check(model.merge_and_unload())
    model = move(adapt("lora", LLAMA))
    model.merge_adapter()
    with pytest.raises(HoldfastError, match="unmerge_adapter"):
        Penalty(model, anchor)


def test_another_architecture_is_named(anchor: Anchor) -> None:
    with pytest.raises(HoldfastError, match="is not in the model"):
        anchor.check(NETWORKS["gpt2"].build())
    with pytest.raises(HoldfastError, match="nothing in common"):
        Penalty(adapt("lora", NETWORKS["gpt2"]), anchor)


def test_another_shape_is_named(anchor: Anchor) -> None:
    model: Any = LLAMA.build()
    model.model.layers[0].mlp.up_proj = nn.Linear(8, 11)
    with pytest.raises(HoldfastError, match=r"up_proj\.weight has shape \(11, 8\), anchored \(12, 8\)"):
        anchor.check(model)


def test_a_trained_layer_without_curvature_is_named() -> None:
    anchored = anchor_of(LLAMA.build(), targets=["q_proj", "v_proj"])
    model = lora(LLAMA, LLAMA.build(), target_modules=["q_proj", "up_proj"])
    with pytest.raises(HoldfastError, match=r"2 trainable layers have no curvature.*up_proj"):
        Penalty(model, anchored)
    Penalty(lora(LLAMA, LLAMA.build(), target_modules=["q_proj"]), anchored)  # anchored layers may stay


def test_an_empty_penalty_is_refused() -> None:
    anchored = anchor_of(LLAMA.build(), targets=["q_proj", "v_proj"])
    with pytest.raises(HoldfastError, match="the penalty would be empty"):
        Penalty(lora(LLAMA, LLAMA.build(), target_modules=["up_proj"]), anchored)
