"""bitsandbytes' layers on the CPU, where it is installed: from the anchor to the penalty."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCABULARY
from packed import TARGETS, adapted, anchor_of, replaced
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.anchor import Anchor
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.read import unpacked

bnb = pytest.importorskip("bitsandbytes")
SINGLE = 1e-4  # relative: float32
EIGHT_BITS = 0.05  # relative: int8 layers round their inputs to 8 bits too


def eight_bits(plain: nn.Linear) -> nn.Module:
    """bitsandbytes' int8 layer."""
    made = bnb.nn.Linear8bitLt(plain.in_features, plain.out_features, bias=False, has_fp16_weights=False)
    made.load_state_dict({"weight": plain.weight.detach().float()})
    return made.to("cpu")


def four_bits(plain: nn.Linear) -> nn.Module:
    """bitsandbytes' nf4 layer."""
    made = bnb.nn.Linear4bit(
        plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    made.load_state_dict({"weight": plain.weight.detach().float()})
    return made.to("cpu")


def wide() -> nn.Module:
    """A Llama in float32 whose sizes bitsandbytes takes."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=2, **sizes)).eval()


def dequantised(model: nn.Module) -> nn.Module:
    """The same function with plain float32 weights."""

    def plain(module: Any) -> nn.Module:
        made = nn.Linear(module.in_features, module.out_features, bias=False)
        made.weight.data = unpacked("", module).clone()
        return made

    found = wide()
    for name, module in model.named_modules():
        owner, _, leaf = name.rpartition(".")
        if leaf in TARGETS:
            setattr(found.get_submodule(owner), leaf, plain(module))
    return found


@pytest.mark.parametrize("make", [eight_bits, four_bits])
@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen"])
def test_bitsandbytes_from_anchor_to_penalty(make: Any, kind: str, tmp_path: Path) -> None:
    model = replaced(wide(), make)
    options: dict[str, Any] = {"curvature": kind, "fisher": "data", "checkpoint": tmp_path / "sums"}
    anchor_of(model, **options).save(tmp_path / "anchor")
    anchor, plain = Anchor.load(tmp_path / "anchor"), anchor_of(dequantised(model), curvature=kind, fisher="data")
    anchor.check(replaced(wide(), make))
    other = Penalty(adapted(dequantised(model)), plain)
    penalty = Penalty(adapted(model), anchor)
    tolerance = SINGLE if make is four_bits else EIGHT_BITS
    assert_close(penalty(), other(), rtol=tolerance, atol=0)
    penalty().backward()
    assert all(p.grad is not None for n, p in penalty.model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("make", [eight_bits, four_bits])
def test_dora_on_bitsandbytes_is_priced_by_its_unpacked_weight(make: Any) -> None:
    model = replaced(wide(), make)
    anchor = anchor_of(model, fisher="data")
    plain = anchor_of(dequantised(model), fisher="data")
    other = adapted(dequantised(model), use_dora=True)
    model = adapted(model, use_dora=True)
    names = list(anchor.curvatures)
    ours, theirs = Penalty(model, anchor).per_layer(), Penalty(other, plain).per_layer()
    assert_close([ours[n] for n in names], [theirs[n] for n in names], rtol=EIGHT_BITS, atol=1e-6)
