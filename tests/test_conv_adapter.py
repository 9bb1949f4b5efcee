"""ConvAdapter's block: SURE's to the last number, and what the recommended one mends."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from holdfast.adapters import ConvAdapterConfig
from holdfast.adapters.components import component_of
from holdfast.adapters.conv_block import ConvBlock
from holdfast.errors import HoldfastError
from holdfast.tuners.convadapter import ConvAdapter
from holdfast.tuners.sizing import by_component


def block(width: int = 16, causal: bool = False, **settings: Any) -> ConvBlock:
    """A block with random weights, in float64."""
    torch.manual_seed(0)
    return ConvBlock(width, ConvAdapterConfig(init="torch", **settings), causal).double()


def drawn(*shape: int) -> Tensor:
    """A fixed random tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def neighbours(x: Tensor, weight: Tensor, inputs: list[list[int]]) -> Tensor:
    """A convolution over (time, channels) by its definition: for each output channel the input channels it sees."""
    time, reach = len(x), weight.shape[2] // 2
    out = x.new_zeros(time, len(inputs))
    for t in range(time):
        for channel, sees in enumerate(inputs):
            for j, source in enumerate(sees):
                for k in range(weight.shape[2]):
                    if 0 <= t + k - reach < time:
                        out[t, channel] += weight[channel, j, k] * x[t + k - reach, source]
    return out


def test_the_papers_block_is_what_its_code_computes() -> None:
    width, hidden = 32, 16
    made = block(width, preset="paper")
    with torch.no_grad():
        made.norm.weight.copy_(1 + 0.1 * drawn(width))
        made.norm.bias.copy_(0.1 * drawn(width))
    x = drawn(1, 11, width)
    named = dict(made.named_parameters())
    y = functional.layer_norm(x[0], (width,), named["norm.weight"], named["norm.bias"])
    pairs = [[2 * g, 2 * g + 1] for g in range(hidden)]
    y = neighbours(y, named["convolutions.0.0.weight"], pairs).clamp_min(0)
    y = neighbours(y, named["convolutions.1.0.weight"], [[g] for g in range(hidden)])
    y = neighbours(y, named["convolutions.2.0.weight"], [[c // 2] for c in range(width)])
    squeezed = y.mean(0) @ named["squeeze_excitation.down.weight"].T
    gate = 1 / (1 + torch.exp(-(squeezed.clamp_min(0) @ named["squeeze_excitation.up.weight"].T)))
    assert_close(made(x, None)[0], y * gate, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("width", "count"), [(1024, 141_824), (768, 81_792)])
def test_the_papers_count_of_parameters(width: int, count: int) -> None:
    made = ConvBlock(width, ConvAdapterConfig(preset="paper"), False)
    assert sum(p.numel() for p in made.parameters()) == count == 8 * width + 5 * width // 2 + 2 * width * (width // 16)


def test_the_papers_count_over_a_large_speech_encoder() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    settings = Wav2Vec2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8, do_stable_layer_norm=True
    )
    with torch.device("meta"):
        model = Wav2Vec2Model(settings)
    model = get_peft_model(model, ConvAdapterConfig(preset="paper"), low_cpu_mem_usage=True)
    found = by_component(model, ConvAdapter())
    assert sum(found.values()) == 3_403_776
    assert found == {"norm": 24 * 2_048, "convolutions": 24 * 8_704, "squeeze-excitation": 24 * 131_072}
    assert component_of("layers.0.convadapter_blocks.default.layer.mixing.up.weight") == "mixing"


def test_the_official_start_has_the_spread_measured_in_its_code() -> None:
    torch.manual_seed(0)
    made = ConvBlock(1024, ConvAdapterConfig(preset="paper"), False)
    added = made(torch.randn(4, 200, 1024), None)
    assert_close(added.std(), torch.tensor(1.05), rtol=0.05, atol=0)  # of the stream's own 1.0
    made = ConvBlock(1024, ConvAdapterConfig(preset="paper", init="torch"), False)
    assert_close(made(torch.randn(4, 200, 1024), None).std(), torch.tensor(0.07), rtol=0.15, atol=0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"groups": "dense", "hidden": 5},
    {"groups": "depthwise-separable", "hidden": 7, "dilation": 2},
    {"mixing": 3, "biases": True, "activation": "sigmoid"},
    {"se_pool": "running", "norm": "rms"},
    {"se_reduction": None, "norm": "none", "kernels": (3, 1, 4, 3), "scale": "learned"},
    {"se_pool": "attention"},
]


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_nothing_is_added_at_the_start_and_nothing_is_dead_after(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = ConvBlock(64, ConvAdapterConfig(**settings), False).double()
    x = drawn(2, 9, 64)
    assert_close(made(x, None), torch.zeros_like(x), rtol=0, atol=0)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (made(x, None) - x).square().sum().backward()
        optimizer.step()
    for name, parameter in made.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("settings", OPTIONS[:-1], ids=str)
def test_padding_of_any_amount_and_side_is_nothing(settings: dict[str, Any], causal: bool) -> None:
    made = block(causal=causal, **settings)
    x = drawn(1, 9, 16)
    alone = made(x, None)
    for before, after in ((0, 1), (0, 30), (4, 0), (3, 11)):
        around = 100 * drawn(1, before + 9 + after, 16)
        around[:, before : before + 9] = x
        valid = torch.zeros(2, before + 9 + after, dtype=torch.bool)
        valid[0, before : before + 9] = True
        valid[1] = True
        added = made(torch.cat([around, drawn(*around.shape)]), valid)[:1]
        assert_close(added[:, before : before + 9], alone, rtol=1e-10, atol=1e-12)
        assert_close(added[:, :before], torch.zeros(1, before, 16).double(), rtol=0, atol=0)


def test_the_paper_leaks_padding_as_its_code_does() -> None:
    made = block(preset="paper")
    x = drawn(1, 9, 16)
    padded = functional.pad(x, (0, 0, 0, 9))
    valid = torch.arange(18)[None] < 9
    assert float((made(padded, valid)[:, :9] - made(x, None)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("settings", OPTIONS[:-1], ids=str)
def test_causal_blocks_do_not_see_the_future(settings: dict[str, Any]) -> None:
    made = block(causal=True, **settings)
    x = drawn(1, 12, 16).requires_grad_()
    for t in (0, 5, 11):
        (gradient,) = torch.autograd.grad(made(x, None)[0, t].sum(), x)
        assert_close(gradient[0, t + 1 :], torch.zeros(11 - t, 16).double(), rtol=0, atol=0)
        assert float(gradient[0, : t + 1].abs().max()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": (3,)}, "two convolutions"),
        ({"groups": "grupped"}, "grouped"),
        ({"scale": 0.0}, "scale"),
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "rellu"}, "relu"),
        ({"causal": True, "se_pool": "attention"}, "running"),
        ({"preset": "papre"}, "paper"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        ConvAdapterConfig(**settings)


def test_channels_that_can_not_be_grouped_are_refused() -> None:
    with pytest.raises(HoldfastError, match="hidden=8"):
        ConvBlock(16, ConvAdapterConfig(hidden=5), False)


def test_a_preset_gives_way_to_what_is_said_beside_it() -> None:
    said = ConvAdapterConfig(preset="paper", init="zero", masked=True, kernels=[3, 3])
    assert (said.init, said.masked, said.kernels) == ("zero", True, (3, 3))
