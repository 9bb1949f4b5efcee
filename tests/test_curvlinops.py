"""Kronecker and eigen against curvlinops, an independent implementation, on common networks in double precision.

It sums losses over a data set: with `reduction="sum"` its operators are ours times the number of scored items. It
needs sequences of one length, all of it scored, and layers that are called once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
import torch
from laws import ROUNDING, drawn
from networks import NETWORKS, Batch, Network
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.targets import select

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
if not version("curvlinops-for-pytorch").startswith("3.0."):
    pytest.skip("its interface changes after 3.0", allow_module_level=True)

REDUCE = {"token": "expand", "sequence": "reduce"}


class Classes(nn.Module):
    """Logits as (batch, classes, ...), where curvlinops and cross-entropy look for them."""

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits(self.model, inputs).movedim(-1, 1)


@dataclass(frozen=True)
class Case:
    """A network, how its logits are had, and its rows as curvlinops takes them."""

    network: Network
    logits: Callable[[nn.Module, Tensor], Tensor]
    pairs: Callable[[Batch], tuple[Tensor, Tensor]]
    batches: list[Batch]


def called(model: nn.Module, inputs: Tensor) -> Tensor:
    """Of a plain network."""
    return model(inputs)


def case(name: str) -> Case:
    """Rows of one length: the network's own, or as many tokens of each as all have."""
    network = NETWORKS[name]
    if network.forward_loss is not None:
        return Case(network, called, lambda batch: (batch["x"], batch["labels"]), network.batches(2))
    ids = torch.randint(2, 13, (5, 6), generator=torch.Generator().manual_seed(4))
    if network.causal:
        batches = [{"input_ids": some, "labels": some} for some in ids.split(2)]
        return Case(network, _logits, lambda batch: (batch["input_ids"][:, :-1], batch["input_ids"][:, 1:]), batches)
    each = network.rows[0]["labels"].dim() == 1  # or one label for a sequence
    batches = [{"input_ids": some, "labels": (some if each else some[:, 0]) % 3} for some in ids.split(2)]
    return Case(network, _logits, lambda batch: (batch["input_ids"], batch["labels"]), batches)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def operator(make: Any, one: Case, layers: dict[str, nn.Module], model: nn.Module, per: str) -> Any:
    """Their operator on the layers' weights, with the data's labels."""
    data = [one.pairs(batch) for batch in one.batches]
    return make(
        Classes(model, one.logits),
        nn.CrossEntropyLoss(reduction="sum"),
        [layer.weight for layer in layers.values()],
        data,
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        kfac_approx=REDUCE[per],
        num_data=sum(len(inputs) for inputs, _ in data),
        num_per_example_loss_terms=data[0][1][0].numel(),
        check_deterministic=False,
    )


def same_products(kind: str, make: Any, name: str, per: str, basis: str | None = None) -> None:
    """C D of every layer, ours times the items against theirs."""
    one = case(name)
    model = one.network.build()
    options = {"targets": one.network.targets, "forward_loss": one.network.forward_loss, "fisher": "data"}
    anchor = Anchor.estimate(model, one.batches, curvature=kind, per=per, progress=False, **options)
    layers = select(model, one.network.targets)
    deltas = {layer: drawn(number, *c.shape) for number, (layer, c) in enumerate(anchor.curvatures.items())}
    found = {layer: anchor.items * anchor.curvatures[layer].apply(deltas[layer].clone()) for layer in layers}
    theirs = operator(make, one, layers, model, basis or per)
    products = theirs @ [deltas[name].reshape(layer.weight.shape) for name, layer in layers.items()]
    wanted = {name: p.detach().reshape(deltas[name].shape) for name, p in zip(layers, products, strict=True)}
    largest = max(float(product.abs().max()) for product in wanted.values())
    assert_close(found, wanted, rtol=1e-9, atol=ROUNDING * largest)


@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "llama", "bert-tokens", "bert-sequence"])
def test_kronecker_is_their_kfac(name: str, per: str) -> None:
    same_products("kronecker", curvlinops.KFACLinearOperator, name, per)


def test_eigen_is_their_ekfac_of_vectors() -> None:
    same_products("eigen", curvlinops.EKFACLinearOperator, "mlp", "token")


def test_eigen_per_sequence_is_their_ekfac_of_images() -> None:
    # Theirs always squares an image's whole gradient; its basis is of patches where it "expands", as ours is.
    same_products("eigen", curvlinops.EKFACLinearOperator, "conv2d", "sequence", basis="token")
