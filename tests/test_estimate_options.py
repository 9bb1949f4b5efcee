"""What the options of `Anchor.estimate` do: cheaper products, fewer rows, drawn labels, and what is refused."""

from typing import Any

import pytest
import torch
from laws import dense
from networks import NETWORKS, Batch, Network
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.diagonal import SquaredProducts
from holdfast.curvature.moments import GradientMoment, InputMoment
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.likelihood import LabelSampler
from holdfast.targets import select

BFLOAT16 = 2**-6  # of the norm: products rounded to 8 bits
STANDARD_ERRORS = 4  # of a mean over drawn subsets of rows
DRAWS = 60


def anchor_of(network: Network, batches: list[Batch], **options: Any) -> Anchor:
    """An anchor of the network as built."""
    options = {"forward_loss": network.forward_loss, "targets": network.targets, "progress": False} | options
    return Anchor.estimate(network.build(), batches, **options)


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "llama", "embedding"])
def test_low_precision_products_stay_near(kind: str, name: str) -> None:
    network = NETWORKS[name]
    exact = anchor_of(network, network.batches(2), curvature=kind, fisher="data")
    near = anchor_of(network, network.batches(2), curvature=kind, fisher="data", dtype=torch.bfloat16)
    for layer, curvature in exact.curvatures.items():
        sums = {part: t for part, t in near.curvatures[layer].tensors().items() if part != "inputs.diagonal"}  # counts
        assert {tensor.dtype for tensor in sums.values()} == {torch.float32}
        form, other = dense(curvature), dense(widened(near, layer))
        assert_close((other - form).norm() / form.norm(), torch.zeros((), dtype=form.dtype), rtol=0, atol=2 * BFLOAT16)


def widened(anchor: Anchor, layer: str) -> Any:
    """The layer's curvature in float64."""
    curvature = anchor.curvatures[layer]
    return type(curvature).from_tensors({name: tensor.double() for name, tensor in curvature.tensors().items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_a_low_precision_model_are_float32(dtype: torch.dtype) -> None:
    network, model = NETWORKS["llama"], NETWORKS["llama"].build().to(dtype)
    anchor = Anchor.estimate(model, network.batches(2), fisher="data", progress=False)
    exact = anchor_of(network, network.batches(2), fisher="data")
    for layer, curvature in anchor.curvatures.items():
        assert {tensor.dtype for tensor in curvature.tensors().values()} == {torch.float32}
        form, other = dense(exact.curvatures[layer]), dense(widened(anchor, layer))
        tolerance = 1e-4 if dtype == torch.float32 else 8 * BFLOAT16  # the model itself computes in bfloat16
        assert_close((other - form).norm() / form.norm(), torch.zeros((), dtype=form.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("statistic", [SquaredProducts, InputMoment, GradientMoment])
def test_sums_of_many_small_terms_lose_nothing(statistic: type) -> None:
    made = statistic(LayerSize(2, 2), Reading(torch.bfloat16))
    rows = torch.full((8, 2), 0.5, dtype=torch.bfloat16)
    for _ in range(2000):
        made.add(*([rows, rows] if statistic.reads == "pairs" else [rows]))
    each = 0.0625 if statistic.reads == "pairs" else 0.25
    total = made.result() if isinstance(made, SquaredProducts) else made.factor(1).matrix
    assert_close(total, torch.full((2, 2), 16_000 * each))


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_a_fraction_of_the_rows_is_unbiased(kind: str, name: str) -> None:
    network = NETWORKS[name]
    rows = network.rows * 4
    batches = network.batches(10, rows)
    exact = anchor_of(network, batches, curvature=kind, fisher="data")
    drawn_anchors = [
        anchor_of(network, batches, curvature=kind, fisher="data", fraction=0.25, seed=seed) for seed in range(DRAWS)
    ]
    for layer, curvature in exact.curvatures.items():
        for part, tensor in curvature.tensors().items():
            if part == "rows":
                continue
            found = torch.stack([one.curvatures[layer].tensors()[part] for one in drawn_anchors])
            error = (found.mean(dim=0) - tensor).norm()
            expected = found.std(dim=0).norm() / DRAWS**0.5
            assert_close(error, torch.zeros_like(error), rtol=0, atol=STANDARD_ERRORS * float(expected))
            assert part == "ridge" or float(expected) > 0  # it did draw


def test_sampled_labels_follow_the_model() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.25, 0.05], dtype=torch.float64).expand(20_000, 5)
    sampler = LabelSampler(0)
    labels = sampler.draw(probabilities.clone(), sampler.uniform(torch.zeros(20_000, dtype=torch.long), None))
    frequencies = torch.bincount(labels, minlength=5).double() / 20_000
    assert_close(frequencies, probabilities[0], rtol=0, atol=0.02)
    assert_close(frequencies[1], torch.zeros((), dtype=torch.float64), rtol=0, atol=0)


def test_sequences_with_the_same_labels_draw_apart() -> None:
    sampler = LabelSampler(0)
    keys = [sampler.key(torch.tensor(ids)) for ids in ([3, 4], [4, 3])]
    first, second = sampler.uniform(torch.tensor([0, 0, 1, 1]), keys).split(2)
    assert first.tolist() != second.tolist()
    assert sampler.uniform(torch.tensor([1, 1]), keys).tolist() == second.tolist()


def test_a_layer_that_no_item_depends_on_is_refused() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    network = NETWORKS["mlp"]
    with pytest.raises(HoldfastError, match="depends on layer 'idle'"):
        Anchor.estimate(Unused().double(), network.batches(2), forward_loss=network.forward_loss, progress=False)


def test_a_layer_hidden_from_gradients_is_refused() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.inner(x)
            return self.head(x)

    network = NETWORKS["mlp"]
    with pytest.raises(HoldfastError, match="'inner' runs without gradients"):
        Anchor.estimate(Hidden().double(), network.batches(2), forward_loss=network.forward_loss, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "kroneker"}, "kronecker"),
        ({"fisher": "true"}, "sampled, data"),
        ({"fraction": 0.0}, "above 0"),
        ({"targets": ["layers"]}, "match no layer"),
        ({"source": None}, "source data"),
        ({"source": []}, "no scored item"),
        ({"curvature": "identity"}, "needs no source"),
        ({"forward_loss": None}, "pass forward_loss"),
        ({"forward_loss": lambda m, b: (m(b["x"]).sum(), 5)}, "fisher='data'"),
        ({"forward_loss": lambda m, b: (m(b["x"]), b["x"])}, "forward_loss returned"),
        ({"forward_loss": lambda m, b: (m(b["x"]) * float("nan"), b["labels"])}, "not finite"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    network = NETWORKS["mlp"]
    given = {"source": network.batches(2), "forward_loss": network.forward_loss, "progress": False} | options
    with pytest.raises(HoldfastError, match=message):
        Anchor.estimate(network.build(), **given)


@pytest.mark.parametrize(
    ("name", "item"), [("llama", "token"), ("bert-tokens", "token"), ("bert-sequence", "example")]
)
def test_the_item_is_what_the_labels_say(name: str, item: str) -> None:
    network = NETWORKS[name]
    anchor = Anchor.estimate(network.build(), network.batches(2), progress=False)
    assert anchor.facts["item"] == item


def test_a_number_of_examples_nobody_keeps_is_refused() -> None:
    network = NETWORKS["mlp"]
    with pytest.raises(HoldfastError, match="stores none"):
        anchor_of(network, network.batches(2), keep=3)
    assert "kronecker" in repr(anchor_of(network, network.batches(2)))


def test_layers_under_a_prompt_have_the_bare_model_s_names() -> None:
    network = NETWORKS["llama"]
    prompted = get_peft_model(network.build(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert list(select(prompted)) == list(select(network.build()))
