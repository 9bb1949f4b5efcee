"""Sums per sequence, and several draws of labels: slow twins and invariances."""

from functools import cache
from typing import Any

import pytest
import slow
import slow_sequences
import torch
from laws import ROUNDING, drawn, same
from networks import IGNORED, NETWORKS, Batch, Network, matrix
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.targets import select

KINDS = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
SQUARED = [kind for kind in KINDS if catalogue.curvature(kind).squares]
DRAWS = 3
# Rows that are patches, padding and prompts, every position seeing every other; a module called twice, indices.
TWINNED = [(kind, name) for kind in slow_sequences.TWINS for name in ("conv1d", "llama", "bert-tokens")]
TWINNED += [(kind, name) for kind in slow_sequences.TWINS if kind != "kronecker" for name in ("twice",)]
TWINNED += [(kind, "embedding") for kind in slow_sequences.TWINS if kind not in slow_sequences.MEANS]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_number = pytest.mark.parametrize(("per", "draws"), [("sequence", 1), ("sequence", DRAWS), ("token", DRAWS)])


def anchor_of(
    network: Network, kind: str, batches: list[Batch] | None = None, model: nn.Module | None = None, **options: Any
) -> Anchor:
    """The anchor of a network per sequence, on its own rows two at a time unless told otherwise."""
    batches = network.batches(2) if batches is None else batches
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "per": "sequence"} | options
    return Anchor.estimate(model or network.build(), batches, curvature=kind, progress=False, **options)


def several(kind: str, draws: int) -> dict[str, Any]:
    """The options of so many draws; labels of the data where a kind takes none."""
    if catalogue.curvature(kind).squares:
        return {"draws": draws, "fisher": "sampled"}
    return {"fisher": "sampled"} if draws == 1 else pytest.skip("its sums are not of squares")


@cache
def slow_sequence_rows(name: str) -> tuple[dict[str, list[slow.Rows]], int]:
    """The twin's rows of a network, with the data's labels."""
    network = NETWORKS[name]
    model = network.build()
    return slow_sequences.rows_of_sequences(network, model, select(model, network.targets))


def compare(anchor: Anchor, wanted: Any) -> None:
    """Every layer's curvature against wanted(layer, D)."""
    deltas = {name: drawn(number, *c.shape) for number, (name, c) in enumerate(anchor.curvatures.items())}
    priced = {name: wanted(name, delta) for name, delta in deltas.items()}
    found = {name: anchor.curvatures[name].apply(delta.clone()) for name, delta in deltas.items()}
    # Of the largest of all layers: gradients of attention's keys, moved alike, sum to zero over a sequence.
    assert_close(found, priced, rtol=1e-9, atol=ROUNDING * max(float(one.abs().max()) for one in priced.values()))


@pytest.mark.parametrize(("kind", "name"), TWINNED)
def test_equals_the_slow_twin(kind: str, name: str) -> None:
    network = NETWORKS[name]
    sequences, items = slow_sequence_rows(name)
    twin = slow_sequences.TWINS[kind]
    compare(anchor_of(network, kind, fisher="data"), lambda layer, delta: twin(kind, sequences[layer], items, delta))


@pytest.mark.parametrize("kind", [kind for kind in SQUARED if kind in slow_sequences.TWINS])
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_several_draws_are_their_mean(kind: str, per: str) -> None:
    network = NETWORKS["llama"]
    model = network.build()
    layers = select(model, network.targets)
    draws = [
        slow_sequences.rows_of_sequences(network, model, layers, labels)
        for labels in slow_sequences.drawn_labels(network, model, 0, DRAWS)
    ]
    items = draws[0][1]

    def wanted(layer: str, delta: Tensor) -> Tensor:
        # Each draw's rows with gradients over sqrt(3): their squares add up to the mean.
        scaled = [[(x, own / DRAWS**0.5) for x, own in rows] for found, _ in draws for rows in found[layer]]
        if per == "sequence":
            return slow_sequences.TWINS[kind](kind, scaled, items, delta)
        return slow.TWINS[kind]([row for rows in scaled for row in rows], items, delta)

    compare(anchor_of(network, kind, per=per, fisher="sampled", draws=DRAWS), wanted)


@each_kind
@each_number
def test_batches_order_and_padding_do_not_matter(kind: str, per: str, draws: int) -> None:
    network, options = NETWORKS["llama"], several(kind, draws) | {"per": per}
    whole = anchor_of(network, kind, **options)
    for batches in (network.batches(1, reversed(network.rows), side="left"), network.batches(5, extra=2)):
        same(anchor_of(network, kind, batches, **options), whole)


@each_kind
@pytest.mark.parametrize("name", ["twice", "conv1d"])
def test_batches_do_not_matter_without_names_for_sequences(kind: str, name: str) -> None:
    network = NETWORKS[name]
    whole = anchor_of(network, kind)
    for size in (1, 5):
        same(anchor_of(network, kind, network.batches(size)), whole)


@each_kind
def test_sequences_without_a_scored_item_change_nothing(kind: str) -> None:
    network = NETWORKS["llama"]
    ids = torch.tensor([3, 4, 5, 6, 7, 8, 9])
    blank = {"input_ids": ids, "labels": torch.full_like(ids, IGNORED)}
    rows = [blank, *network.rows[:2], blank, *network.rows[2:]]
    same(anchor_of(network, kind, network.batches(3, rows)), anchor_of(network, kind))


@each_kind
@pytest.mark.parametrize("name", ["reentrant", "recomputed"])
@pytest.mark.parametrize("draws", [1, DRAWS])
def test_checkpointing_changes_nothing(kind: str, name: str, draws: int) -> None:
    network, options = NETWORKS[name], several(kind, draws)
    assert network.plain is not None
    same(anchor_of(network, kind, **options), anchor_of(network, kind, model=network.plain(), **options))


@each_kind
def test_one_position_is_one_sequence(kind: str) -> None:
    same(anchor_of(NETWORKS["mlp"], kind), anchor_of(NETWORKS["mlp"], kind, per="token"))


def test_inputs_alone_count_every_call_of_a_module() -> None:
    curvatures: list[Any] = [
        anchor_of(NETWORKS["twice"], "kronecker", fisher="data", per=per).curvatures["shared"]
        for per in ("token", "sequence")
    ]
    assert_close(curvatures[1].inputs.matrix, curvatures[0].inputs.matrix, rtol=1e-12, atol=0)
    delta = drawn(1, *curvatures[0].shape)
    ratio = curvatures[1].apply(delta.clone()).norm() / curvatures[0].apply(delta.clone()).norm()
    assert abs(float(ratio) - 1) > 0.01  # gradients are summed over the calls before they are squared


@pytest.mark.parametrize("kind", list(slow_sequences.MEANS))
def test_means_of_indices_are_refused(kind: str) -> None:
    with pytest.raises(HoldfastError, match="embedding's inputs are indices"):
        anchor_of(NETWORKS["embedding"], kind)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "embedding", "mlp"])
def test_the_diagonal_is_the_mean_square_of_vectorised_gradients(name: str) -> None:
    network, model = NETWORKS[name], NETWORKS[name].build()
    assert network.forward_loss is not None
    anchor = anchor_of(network, "diagonal", fisher="data")
    squares: dict[str, Tensor] = {}
    items = 0

    def loss(weights: dict[str, Tensor], row: Batch) -> Tensor:
        inputs = row["x"] if "x" in row else row["input_ids"]
        logits = functional_call(model, weights, (inputs[None],)).flatten(0, -2)
        return nn.functional.cross_entropy(logits, row["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    weights = {f"{layer}.weight": model.get_submodule(layer).weight.detach() for layer in anchor.curvatures}
    # Rows of one length are a batch of their own: `vmap` pads nothing.
    for length in {row["labels"].shape for row in network.rows}:
        alike = [row for row in network.rows if row["labels"].shape == length]
        batch = {key: torch.stack([row[key] for row in alike]) for key in alike[0]}
        items += int((batch["labels"] != IGNORED).sum())
        for key, each in vmap(grad(loss), in_dims=(None, 0))(weights, batch).items():
            squares[key] = squares.get(key, torch.zeros(())) + each.square().sum(dim=0)
    assert anchor.items == items
    for layer, curvature in anchor.curvatures.items():
        wanted = matrix(model.get_submodule(layer), squares[f"{layer}.weight"]) / items
        assert_close(curvature.tensors()["fisher"], wanted, rtol=1e-9, atol=ROUNDING * float(wanted.max().detach()))


@pytest.mark.parametrize("options", [{"draws": 2}, {"fraction": 0.5, "per": "token"}, {"fisher": "exact"}], ids=str)
def test_what_is_weighted_for_squares_is_refused_where_nothing_is_squared(options: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match="without squaring them"):
        anchor_of(NETWORKS["mlp"], "absolute", **options)
