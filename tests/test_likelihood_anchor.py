"""Anchors of every head: independent of batches and padding, in the head's own items, and of the right size."""

from typing import Any

import pytest
import torch
from heads import HEADS, Head
from laws import same
from networks import NETWORKS
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.likelihood import Fisher, Items, summed_loss
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.likelihoods.laplace import Laplace

READ = {name: head for name, head in HEADS.items() if head.kind != "Features" and "llama-" not in name}
# The feature extractor's own layers run at the recording's rate, where the frames' mask does not reach.
TARGETS = {"wav2vec2-ctc": ".*(encoder.layers|lm_head|projection).*", "wav2vec2-sequence": ".*(encoder.layers|proj).*"}
each_head = pytest.mark.parametrize("name", READ)


def anchor_of(name: str, batches: list[Any], **options: Any) -> Anchor:
    """An anchor of a head's model as built."""
    options = {"targets": TARGETS.get(name, "all-linear"), "progress": False} | options
    return Anchor.estimate(READ[name].build(), batches, **options)


@each_head
@pytest.mark.parametrize("curvature", ["kronecker", "diagonal"])
@pytest.mark.parametrize("fisher", ["sampled", "data"])
def test_anchors_do_not_depend_on_batches_and_padding(name: str, curvature: str, fisher: Fisher) -> None:
    head: Head = READ[name]
    options: dict[str, Any] = {"curvature": curvature, "fisher": fisher}
    options |= {"draws": 2} if fisher == "sampled" else {}
    whole = anchor_of(name, [head.batch()], **options)
    assert (whole.items, whole.facts["item"]) == (Items(head.build()).items_in(head.batch()), head.item)
    alone = anchor_of(name, [head.batch([row]) for row in reversed(head.rows)], **options)
    padded = anchor_of(name, [head.batch(head.rows[:2], extra=3), head.batch(head.rows[2:])], **options)
    for other in (alone, padded):
        same(other, whole, rtol=1e-6)


@each_head
def test_half_the_form_of_the_fisher_forecasts_the_rise(name: str) -> None:
    """Along a small random move of one layer, E over drawn labels of the loss rises by q/2: here for the head's own.

    The last layer's move leaves its inputs alone, so its Fisher is exact up to the third order, and the diagonal's
    trace is its expectation over moves: compared with the divergence, which is that rise.
    """
    head = READ[name]
    model = head.build()
    last = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)][-1]
    anchor = anchor_of(name, [head.batch()], targets=[last], curvature="diagonal", fisher="sampled", draws=4000)
    reader, layer = Items(model), model.get_submodule(last)
    weight, before = layer.weight.detach().clone(), reader.read(head.batch()).answers()
    generator, size, rises = torch.Generator().manual_seed(0), 1e-3, []
    for _ in range(400):
        step = size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        for sign in (1, -1):  # odd orders cancel
            with torch.no_grad():
                layer.weight.copy_(weight + sign * step)
                now = reader.read(head.batch())
                rises.append(now.divergence(before) / now.items)
    trace = anchor.curvatures[last].apply(torch.ones_like(weight)).sum()
    forecast = 0.5 * size**2 * trace
    if head.kind == "CTC":  # the divergence is that of paths, which bounds that of label sequences
        assert float(torch.stack(rises).mean()) >= float(forecast)
    else:
        assert_close(torch.stack(rises).mean().to(forecast.dtype), forecast, rtol=0.25, atol=0)


def test_the_noise_decides_the_size_of_a_nat() -> None:
    network = NETWORKS["mlp"]
    found = {}
    for sigma in (1.0, 0.5):
        found[sigma] = Anchor.estimate(
            network.build(),
            network.batches(2),
            forward_loss=lambda m, b, s=sigma: Gaussian(m(b["x"]), torch.zeros(len(b["x"]), 3), sigma=s),
            fisher="exact",
            progress=False,
        )
    absolute = Anchor.estimate(
        network.build(),
        network.batches(2),
        forward_loss=lambda m, b: Laplace(m(b["x"]), None, b=0.5),
        fisher="exact",
        progress=False,
    )
    same(absolute, found[0.5])  # the information of both is 1 / scale^2
    for name, curvature in found[1.0].curvatures.items():
        delta = torch.ones(curvature.shape, dtype=torch.float64)
        assert_close(found[0.5].curvatures[name].apply(delta), 4 * curvature.apply(delta), rtol=1e-9, atol=0)


def test_losses_of_masked_spectrograms_leave_padding_out() -> None:
    spectra = torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    for make in (Gaussian, Laplace):
        outputs = torch.zeros_like(spectra)
        padded = make(outputs, spectra.masked_fill(mask[:, :, None] == 0, 99.0), mask)
        alone = make(torch.zeros(5, 3, dtype=torch.float64), spectra[mask != 0])
        assert padded.items == alone.items == 5
        assert_close(padded.loss(), alone.loss(), rtol=1e-12, atol=0)


def test_the_mean_loss_of_a_batch_is_per_item() -> None:
    head = READ["wav2vec2-ctc"]
    reader = Items(head.build())
    together = reader.run(head.batch())
    alone = [reader.run(head.batch([row])) for row in head.rows]
    assert_close(summed_loss(together), sum(summed_loss(one) for one in alone), rtol=1e-9, atol=0)
