"""Every curvature of the catalogue on every tiny network: laws, invariances, and the slow twin."""

from functools import cache
from typing import Any

import pytest
import slow
import torch
from allocations import Allocations
from laws import LAWS, ROUNDING, drawn, same
from networks import IGNORED, NETWORKS, Batch, Network
from torch import nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.layers import is_embedding, require_kind
from holdfast.likelihood import Items
from holdfast.measuring.measurement import Measurement, Sampling, Watch
from holdfast.pretrained import at_anchor
from holdfast.targets import select

KINDS = catalogue.names("curvature")
MEASURED = [kind for kind in KINDS if catalogue.curvature(kind).statistics()]
FISHERS = ["data", "sampled"]
PADDED = [name for name, network in NETWORKS.items() if network.padded]
MASKED = [name for name in PADDED if NETWORKS[name].forward_loss is None]
CHECKPOINTED = [name for name, network in NETWORKS.items() if network.plain]


def over(names: list[str]) -> Any:
    """Parametrise over networks by name."""
    return pytest.mark.parametrize("network", [NETWORKS[name] for name in names], ids=names)


each_kind = pytest.mark.parametrize("kind", KINDS)
each_measured = pytest.mark.parametrize("kind", MEASURED)
each_network = over(list(NETWORKS))
each_fisher = pytest.mark.parametrize("fisher", FISHERS)


def anchor_of(
    network: Network, kind: str, batches: list[Batch] | None = None, model: nn.Module | None = None, **options: Any
) -> Anchor:
    """The anchor of a network, on its own rows two at a time unless told otherwise."""
    if kind not in MEASURED:
        batches = None
    elif batches is None:
        batches = network.batches(2)
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    return Anchor.estimate(network.build() if model is None else model, batches, curvature=kind, **options)


@cache
def slow_rows(name: str, fisher: str) -> tuple[dict[str, slow.Rows], int]:
    """The twin's rows of a network; the same for every curvature."""
    network = NETWORKS[name]
    model = (network.plain or network.build)()
    labels = slow.drawn_labels(network, model, seed=0) if fisher == "sampled" else None
    return slow.row_gradients(network, model, select(model, network.targets), labels)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in slow.TWINS])
@each_network
@each_fisher
def test_equals_the_slow_twin(kind: str, network: Network, fisher: str) -> None:
    anchor = anchor_of(network, kind, fisher=fisher)
    rows, items = slow_rows(network.name, fisher)
    assert anchor.items == (items if kind in MEASURED else 0)
    for number, (name, curvature) in enumerate(anchor.curvatures.items()):
        delta = drawn(number, *curvature.shape)
        wanted = slow.TWINS[kind](rows[name], items, delta)
        near = {"rtol": 1e-9, "atol": ROUNDING * float(wanted.abs().max())}
        assert_close(curvature.apply(delta.clone()), wanted, msg=lambda text, at=name: f"{at}: {text}", **near)


@each_kind
@each_network
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(kind: str, network: Network, law: Any) -> None:
    for curvature in anchor_of(network, kind).curvatures.values():
        law(curvature)


@each_measured
@each_network
@each_fisher
@pytest.mark.parametrize("size", [1, 5])
def test_batch_size_does_not_matter(kind: str, network: Network, fisher: str, size: int) -> None:
    same(anchor_of(network, kind, network.batches(size), fisher=fisher), anchor_of(network, kind, fisher=fisher))


@each_measured
@each_network
def test_order_does_not_matter(kind: str, network: Network) -> None:
    reverse = network.batches(2, reversed(network.rows))
    # A user's forward_loss names no sequences, so labels are drawn in order there.
    for fisher in FISHERS if network.forward_loss is None else ["data"]:
        same(anchor_of(network, kind, reverse, fisher=fisher), anchor_of(network, kind, fisher=fisher))


def measured(network: Network, kind: str, batches: list[Batch], share: bool = True) -> Measurement:
    """The sums of some batches, with the data's labels; what comes before them is measured on all of the data."""
    model, made = network.build(), catalogue.curvature(kind)
    layers = select(model, network.targets)
    sizes = {n: LayerSize(*require_kind(n, m).size(m), is_embedding(require_kind(n, m))) for n, m in layers.items()}
    first = {} if made.after is None else anchor_of(network, made.after.kind, fisher="data").curvatures
    reading = Reading(per=made.per)
    reader, watch = Items(model, network.forward_loss), Watch(share=share)
    found = Measurement(reader, layers, sizes, made, reading, Sampling("data"), first, watch=watch)
    with at_anchor(model):
        for batch in batches:
            found.add(batch)
    return found


@each_measured
@over([name for name, network in NETWORKS.items() if network.plain is None])
def test_sums_of_shards_add_up(kind: str, network: Network) -> None:
    first = measured(network, kind, network.batches(2, network.rows[:3]), share=False)
    second = measured(network, kind, network.batches(2, network.rows[3:]), share=False)
    for layer, statistics in first.sums.items():
        for name, statistic in statistics.items():
            statistic.merge(second.sums[layer][name].state())
    first.items += second.items
    whole = anchor_of(network, kind, fisher="data")
    same(Anchor(first.curvatures(), whole.weights, kind, "data", first.items), whole)


@each_measured
@over(["mlp", "llama", "gpt2", "bert-tokens"])
@pytest.mark.parametrize("share", [True, False])
def test_sharing_inputs_changes_nothing(kind: str, network: Network, share: bool) -> None:
    whole = anchor_of(network, kind, fisher="data")
    apart = measured(network, kind, network.batches(2), share)
    same(Anchor(apart.curvatures(), whole.weights, kind, "data", apart.items), whole)


@each_measured
@over(PADDED)
@each_fisher
@pytest.mark.parametrize("padding", [{"extra": 3}, {"side": "left"}, {"side": "left", "extra": 2}], ids=str)
def test_padding_contributes_nothing(kind: str, network: Network, fisher: str, padding: dict[str, Any]) -> None:
    if network.name == "bert-sequence":  # BERT classifies by the first position, padding or not
        padding = padding | {"side": "right"}
    padded = network.batches(2, **padding)
    same(anchor_of(network, kind, padded, fisher=fisher), anchor_of(network, kind, fisher=fisher))


@each_measured
@over(MASKED)
@each_fisher
@pytest.mark.parametrize("size", [1, 3])
def test_masked_sequences_change_nothing(kind: str, network: Network, fisher: str, size: int) -> None:
    ids = torch.tensor([3, 4, 5, 6, 7, 8, 9])
    per_token = network.rows[0]["labels"].dim() == 1
    blank = {"input_ids": ids, "labels": torch.full_like(ids if per_token else ids[0], IGNORED)}
    rows = [blank, *network.rows[:2], blank, *network.rows[2:]]
    same(anchor_of(network, kind, network.batches(size, rows), fisher=fisher), anchor_of(network, kind, fisher=fisher))


@each_measured
@over(CHECKPOINTED)
@each_fisher
def test_checkpointing_changes_nothing(kind: str, network: Network, fisher: str) -> None:
    assert network.plain is not None
    plain = anchor_of(network, kind, model=network.plain(), fisher=fisher)
    same(anchor_of(network, kind, fisher=fisher), plain)


@each_measured
def test_checkpointing_of_transformers_changes_nothing(kind: str) -> None:
    network = NETWORKS["llama"]
    model = network.build().train()
    model.gradient_checkpointing_enable()
    same(anchor_of(network, kind, model=model), anchor_of(network, kind))
    assert model.is_gradient_checkpointing


@each_kind
@each_network
def test_a_saved_anchor_is_the_anchor(kind: str, network: Network, tmp_path: Any) -> None:
    anchor = anchor_of(network, kind)
    anchor.save(tmp_path / "anchor")
    again = Anchor.load(tmp_path / "anchor")
    for name, curvature in anchor.curvatures.items():
        assert_close(again.curvatures[name].tensors(), curvature.tensors(), rtol=0, atol=0)
    assert (again.kind, again.fisher, again.items) == (anchor.kind, anchor.fisher, anchor.items)
    assert (again.weights, again.facts) == (anchor.weights, anchor.facts)
    again.check(network.build())


@each_measured
def test_no_tensor_holds_a_matrix_per_row(kind: str) -> None:
    network = NETWORKS["mlp"]
    rows = network.rows * 20  # 100 rows; the smallest layer's weight has 18 entries, the widest layer 6 outputs
    with Allocations() as made:
        anchor_of(network, kind, [network.collate(rows)])
    assert made.largest <= 100 * 6


def test_every_twin_is_of_a_known_curvature() -> None:
    assert set(slow.TWINS) <= set(KINDS)
