"""Anchors whose factors are not full: the laws, the budget, the file, and what a batch that is peeked at costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws import LAWS, drawn, is_positive_semidefinite, price, same
from networks import NETWORKS
from torch.testing import assert_close
from torch.utils.data import DataLoader

from holdfast import factors
from holdfast.anchor import Anchor
from holdfast.curvature.eigen import Eigen
from holdfast.curvature.kronecker import Kronecker
from holdfast.errors import HoldfastError
from holdfast.factors.rotation import turned

NETWORK = NETWORKS["llama"]
STORAGES = ("blocks:3", "low-rank:2", "diagonal")
SIDED = ("kronecker", "tracekron", "eigen", "tridiagonal")
KEPT = [(k, s) for k in SIDED for s in STORAGES if (k, s) != ("eigen", "low-rank:2")]  # which has no basis to turn to
ROUNDED = 0.03  # relative to the largest entry, of bfloat16


def anchored(kind: str = "kronecker", source: Any = None, **options: Any) -> Anchor:
    """An anchor of the tiny Llama."""
    source = NETWORK.batches(2) if source is None else source
    return Anchor.estimate(NETWORK.build(), source, curvature=kind, **{"progress": False, **options})


@pytest.mark.parametrize(("kind", "storage"), KEPT)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(kind: str, storage: str, law: Any) -> None:
    for curvature in anchored(kind, storage=storage).curvatures.values():
        law(curvature)


@pytest.mark.parametrize(("kind", "storage"), KEPT)
def test_batch_size_does_not_matter(kind: str, storage: str) -> None:
    same(anchored(kind, NETWORK.batches(1), storage=storage), anchored(kind, NETWORK.batches(5), storage=storage))


@pytest.mark.parametrize("storage", STORAGES)
def test_factors_are_those_of_the_full_ones_rows(storage: str) -> None:
    smaller, full = anchored(storage=storage), anchored()
    for name, curvature in smaller.curvatures.items():
        exact: Any = full.curvatures[name]
        assert isinstance(curvature, Kronecker)
        for found, wanted in ((curvature.inputs, exact.inputs), (curvature.gradients, exact.gradients)):
            assert found.structure == storage.partition(":")[0]
            assert_close(found.diagonal(), wanted.diagonal())


def test_what_is_as_large_as_the_full_factor_stays_full() -> None:
    for storage in ("low-rank:8", "blocks:12"):
        for curvature in anchored(storage=storage, targets=["q_proj"]).curvatures.values():
            assert isinstance(curvature, Kronecker)
            assert (curvature.inputs.structure, curvature.gradients.structure) == ("full", "full")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"])
def test_eigen_in_blocks_has_the_fishers_own_diagonal_there(name: str) -> None:
    """L_ij is the price of u_i v_j^T under the Fisher itself, which stored samples hold when all are kept."""
    own = anchored("eigen", storage="blocks:3").curvatures[name]
    exact = anchored("samples", keep=1000, per="token").curvatures[name]
    assert isinstance(own, Eigen)
    assert own.inputs is not None
    assert own.gradients is not None
    assert own.inputs.shape[1:] == own.gradients.shape[1:] == (3, 3)
    up, down = (
        turned(torch.eye(width, dtype=torch.float64), basis)
        for width, basis in zip(own.shape, (own.gradients, own.inputs), strict=True)
    )
    for i, j in ((0, 0), (2, 5), (7, 7), (4, 1)):
        assert_close(own.moments[i, j], price(exact, torch.outer(up[:, i], down[:, j])))


@pytest.mark.parametrize("memory", [12_000, 16_000])
def test_a_budget_is_kept(memory: int) -> None:
    anchor = anchored(memory=memory)
    told = anchor.facts["plan"]
    assert told["bytes"] <= memory
    assert told["budget"] == memory
    held = {}
    for name, curvature in anchor.curvatures.items():
        assert isinstance(curvature, Kronecker)
        sides = {"inputs": curvature.inputs, "gradients": curvature.gradients}
        assert told["layers"][name] == {s: factors.storage(told["layers"][name][s]).name for s in sides}
        assert {s: told["layers"][name][s].partition(":")[0] for s in sides} == {
            side: factor.structure for side, factor in sides.items()
        }
        held |= {t.data_ptr(): t.numel() for t in curvature.tensors().values() if t.numel() > 2}
    assert 8 * sum(held.values()) == told["bytes"]  # layers with one input hold it once


def test_a_budget_that_holds_everything_changes_nothing() -> None:
    plain, roomy = anchored(), anchored(memory="1GiB")
    same(roomy, plain)
    assert {storage for layer in roomy.facts["plan"]["layers"].values() for storage in layer.values()} == {"full"}
    assert "plan" not in plain.facts


def test_a_budget_that_is_too_small_is_refused_before_anything_is_summed() -> None:
    with pytest.raises(HoldfastError, match=r"curvature 'kronecker' of 14 layers takes at least .* bytes"):
        anchored(memory=1000)
    with pytest.raises(HoldfastError, match="takes at least"):
        anchored("diagonal", memory=1000)


@pytest.mark.parametrize("kind", ["kronecker", "samples"])
def test_the_batch_that_is_looked_at_first_is_not_lost(kind: str) -> None:
    wanted = anchored(kind)
    same(anchored(kind, iter(NETWORK.batches(2)), memory="1GiB"), wanted)
    same(anchored(kind, (batch for batch in NETWORK.batches(2)), memory="1GiB"), wanted)


def test_what_is_drawn_does_not_depend_on_the_plan() -> None:
    def loader() -> DataLoader:
        torch.manual_seed(3)
        return DataLoader(NETWORK.rows, batch_size=2, shuffle=True, collate_fn=NETWORK.collate)

    options = {"max_items": 5, "fraction": 0.5}
    same(anchored(source=loader(), memory="1GiB", **options), anchored(source=loader(), **options))


def test_comparing_halves_takes_two_of_each_sum() -> None:
    once = anchored(memory="1GiB").facts["plan"]["bytes"]
    halves = anchored(memory="1GiB", until=1e-9)
    assert halves.facts["plan"]["bytes"] == 2 * once


@pytest.mark.parametrize("storage", ["blocks:3", "low-rank:2"])
def test_smaller_structures_survive_the_file(storage: str, tmp_path: Path) -> None:
    anchor = anchored(storage=storage)
    anchor.save(tmp_path / "whole")
    anchor.save(tmp_path / "coarse", torch.bfloat16)
    whole, coarse = Anchor.load(tmp_path / "whole"), Anchor.load(tmp_path / "coarse")
    for name, curvature in anchor.curvatures.items():
        assert_close(whole.curvatures[name].tensors(), curvature.tensors(), rtol=0, atol=0)
        stored = coarse.curvatures[name].tensors()
        found = type(curvature).from_tensors({part: tensor.double() for part, tensor in stored.items()})
        delta = drawn(1, *curvature.shape)
        wanted = curvature.apply(delta.clone())
        assert_close(found.apply(delta.clone()), wanted, rtol=ROUNDED, atol=ROUNDED * float(wanted.abs().max()))
        is_positive_semidefinite(found)


@pytest.mark.parametrize("length", [8, 600])
def test_kept_sequences_are_counted_with_their_own_length(length: int) -> None:
    ids = torch.arange(2 * length).reshape(2, length) % 7
    options: dict[str, Any] = {"targets": ["q_proj"], "keep": 4}
    numbers = 2 * 4 * length * (8 + 8)  # layers, examples, positions, both sides
    anchor = anchored("samples-joint", [{"input_ids": ids}] * 2, memory=16 * numbers, **options)
    assert anchor.facts["plan"]["bytes"] >= 8 * numbers * (length - 1) / length
    with pytest.raises(HoldfastError, match="takes at least"):
        anchored("samples-joint", [{"input_ids": ids}] * 2, memory=4 * numbers, **options)
