"""Weight norm under adapters: what PEFT loses in silence, and what Holdfast does instead."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pretrained_kinds import KINDS, drawn, run, stirred
from torch import Tensor, nn
from torch.testing import assert_close

import holdfast
from holdfast import export
from holdfast.adapters.weight_norm import check_mergeable, fold_weight_norm
from holdfast.analysis.merged import merged
from holdfast.errors import HoldfastError
from holdfast.layers import is_weight_normed
from holdfast.tuners.full import Full
from holdfast.tuners.ia3 import Ia3
from holdfast.tuners.lora import Lora
from holdfast.tuners.options import chosen


def old(module: nn.Module) -> nn.Module:
    """torch's former way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "new": nn.utils.parametrizations.weight_norm,
    "old": old,
    "over-time": lambda m: nn.utils.parametrizations.weight_norm(m, dim=2),  # as wav2vec2 has it
}
every_way = pytest.mark.parametrize("way", WAYS)


def stack(way: str) -> nn.Sequential:
    """A small vocoder: weight-normed convolutions, one of them transposed, one grouped."""
    torch.manual_seed(0)
    normed = WAYS[way]
    layers = {
        "pre": normed(nn.Conv1d(4, 6, 3, padding=1)),
        "act": nn.LeakyReLU(),
        "upsample": normed(nn.ConvTranspose1d(6, 6, 4, stride=2)),
        "grouped": normed(nn.Conv1d(6, 6, 3, groups=3)),
        "post": nn.Conv1d(6, 2, 3),
    }
    return nn.Sequential(OrderedDict(layers))


ALL = ["pre", "upsample", "grouped", "post"]


def wave() -> Tensor:
    """(batch, channels, time)."""
    return drawn(2, 4, 12)


@every_way
def test_folding_keeps_the_function_bit_for_bit(way: str) -> None:
    model = stack(way)
    before = model(wave())
    assert [is_weight_normed(m) for m in model] == [True, False, True, True, False]
    assert fold_weight_norm(model, ALL) == ALL[:3]
    assert not any(is_weight_normed(m) for m in model)
    assert_close(model(wave()), before, rtol=0, atol=0)
    assert set(model.state_dict()) == {f"{i}.{p}" for i in ALL for p in ("weight", "bias")}
    assert all(p.requires_grad for p in model.parameters())
    assert fold_weight_norm(model, ALL) == []


@every_way
def test_what_peft_loses_is_refused(way: str, tmp_path: Path) -> None:
    model = get_peft_model(stack(way), LoraConfig(target_modules=["pre", "post"]))
    stirred(model)
    adapted = model(wave()).detach()
    lost = copy.deepcopy(model).merge_and_unload()(wave())
    assert float((lost - adapted).detach().abs().max()) > 1e-2
    with pytest.raises(HoldfastError, match=r"unadapted layers(.|\n)*fold_weight_norm"):
        check_mergeable(model)
    with pytest.raises(HoldfastError, match="'pre' is weight-normed"):
        holdfast.shifts(model)
    for merging in (merged, lambda m: export.FORMS["merged"](m, "base", tmp_path)):
        with pytest.raises(HoldfastError, match="silently give the unadapted layers"):
            merging(model)


@every_way
def test_holdfasts_lora_merges_to_what_it_computed(way: str) -> None:
    with pytest.warns(UserWarning, match="folded into the weights of pre"):
        model = chosen(Lora, {}, rank=2, alpha=4).prepare(stack(way), ["pre", "post"])
    stirred(model)
    check_mergeable(model)
    assert set(holdfast.shifts(model)) == {"pre", "post"}
    with torch.no_grad():
        adapted = model(wave())
        assert_close(model.merge_and_unload()(wave()), adapted, rtol=1e-5, atol=1e-5)


@every_way
def test_ia3_merges_to_what_it_computed(way: str) -> None:
    layer = nn.Conv2d if way == "over-time" else nn.Linear  # which has no third dimension to norm over
    made = nn.Sequential(WAYS[way](layer(4, 6, 1) if layer is nn.Conv2d else layer(4, 6)))  # type: ignore[operator]
    x = drawn(2, 4, 3, 3) if layer is nn.Conv2d else drawn(2, 4)
    with pytest.warns(UserWarning, match="folded into the weights of 0"):
        model = stirred(Ia3().prepare(made, ["0"]))
    with torch.no_grad():
        adapted = model(x)
        assert_close(model.merge_and_unload()(x), adapted, rtol=1e-5, atol=1e-5)


def test_what_ia3_can_not_scale_is_said_in_words() -> None:
    with pytest.raises(HoldfastError, match=r"can't scale one of these layers(.|\n)*--targets"):
        Ia3().prepare(stack("new"), ["pre"])


@every_way
def test_full_fine_tuning_trains_magnitudes_and_directions(way: str) -> None:
    model = stack(way)
    names, before = list(model.state_dict()), model(wave()).detach()
    Full().prepare(model, ["pre", "post"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n.split(".")[0] for n in trained] == ["pre", "pre", "post"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(wave()).square().mean().backward()
    optimizer.step()
    assert float((model(wave()) - before).detach().abs().max()) > 1e-4
    assert list(model.state_dict()) == names


@every_way
def test_full_fine_tuning_over_weight_norm_is_refused(way: str) -> None:
    model = stack(way)
    reference = holdfast.snapshot(model)
    with pytest.raises(HoldfastError, match="computed anew"):
        holdfast.shifts(model, reference)


def test_a_second_parametrisation_is_refused() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3))
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(HoldfastError, match="parametrised in another way"):
        fold_weight_norm(nn.Sequential(layer), ["0"])


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm", "vits"])
def test_models_with_weight_norm_fold(name: str) -> None:
    kind = KINDS[name]
    model = kind.build()
    with torch.no_grad():
        before = run(model, kind)
        names = [n for n, m in model.named_modules() if is_weight_normed(m)]
        assert names
        assert fold_weight_norm(model, names) == names
        assert_close(run(model, kind), before, rtol=1e-5, atol=1e-6)
