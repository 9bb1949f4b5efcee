"""Anchors of parts of the data add up to the anchor of all of it; what does not add up says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import lora, move
from laws import EXACT, dense, drawn, price, same
from networks import NETWORKS, Network
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchors.merging import APPROXIMATION
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.curvature.eigen import Eigen
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.two_sided import TwoSided
from holdfast.errors import HoldfastError
from holdfast.penalties.quadratic import Penalty

MEASURED = {name: catalogue.curvature(name) for name in catalogue.names("curvature")}
MEASURED = {name: kind for name, kind in MEASURED.items() if kind.statistics() and kind is not Eigen}
BANDS = [name for name, kind in MEASURED.items() if not kind.linear and not issubclass(kind, TwoSided)]
LLAMA = NETWORKS["llama"]
PARTS = (slice(0, 3), slice(3, 4), slice(4, None))  # of unequal size


def anchor(network: Network, rows: slice = slice(None), **options: Any) -> Anchor:
    """An anchor of some of the network's rows."""
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    return Anchor.estimate(network.build(), network.batches(2, network.rows[rows]), **options)


def kronecker(*factors: tuple[Any, Any]) -> list[Anchor]:
    """Anchors of one layer with these S and G, measured nowhere."""
    weights = {"layer": {"sha256": "0", "shape": [2, 3], "dtype": "float64"}}
    return [Anchor({"layer": Kronecker.of(s, g)}, weights, "kronecker", "sampled", 1) for s, g in factors]


@pytest.mark.parametrize(
    ("network", "per", "fisher"),
    [
        ("conv1d", "token", "data"),
        ("conv1d", "sequence", "data"),
        ("embedding", "token", "data"),
        ("llama", "token", "sampled"),  # labels are drawn for each sequence, whatever batch it is in
        ("llama", "sequence", "data"),
    ],
)
@pytest.mark.parametrize("kind", MEASURED)
def test_parts_add_up_to_the_whole(kind: str, network: str, per: str, fisher: str) -> None:
    options: dict[str, Any] = {"curvature": kind, "per": per, "fisher": fisher}
    if network == "conv1d":
        options["targets"] = ["first"]  # what couples layers needs the same rows in all of them
    parts = [anchor(NETWORKS[network], rows, **options) for rows in PARTS]
    whole = anchor(NETWORKS[network], **options)
    merged = Anchor.merge(parts)
    same(whole, merged)
    assert (merged.items, merged.kind, merged.fisher) == (whole.items, kind, fisher)
    same(merged, Anchor.merge([Anchor.merge(parts[:2]), parts[2]]))
    merged.check(NETWORKS[network].build())


@pytest.mark.parametrize("kind", [name for name, kind in MEASURED.items() if issubclass(kind, Coupled)])
def test_terms_between_layers_add_up_too(kind: str) -> None:
    parts = [anchor(LLAMA, rows, curvature=kind, per="sequence", fisher="data") for rows in PARTS]
    whole = anchor(LLAMA, curvature=kind, per="sequence", fisher="data")
    model = lora(LLAMA, LLAMA.build())
    penalties = [Penalty(model, one) for one in (whole, Anchor.merge(parts))]
    move(model)
    first, second = (penalty().detach() for penalty in penalties)
    assert_close(second, first, **EXACT)


def test_the_parts_stay_on_record(tmp_path: Path) -> None:
    parts = [anchor(LLAMA, rows, seed=seed) for seed, rows in enumerate(PARTS)]
    nested = Anchor.merge([Anchor.merge(parts[:2]), parts[2]])
    known = [{"items": p.items, "seed": p.facts["seed"], "data_sha256": p.facts["data_sha256"]} for p in parts]
    assert [{k: part[k] for k in known[0]} for part in nested.facts["parts"]] == known
    assert "seed" not in nested.facts
    assert nested.facts["per"] == "token"
    assert nested.facts["data_sha256"] not in [part["data_sha256"] for part in known]
    nested.save(tmp_path / "a")
    assert Anchor.load(tmp_path / "a").facts == json.loads(json.dumps(nested.facts))


def test_layers_go_on_sharing_their_inputs() -> None:
    merged: dict[str, Any] = Anchor.merge([anchor(LLAMA, rows) for rows in PARTS]).curvatures
    query, key, down = (
        merged[f"model.layers.0.{name}"] for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    )
    assert query.inputs.matrix is key.inputs.matrix
    assert query.inputs.matrix is not down.inputs.matrix


def test_identities_merge_to_themselves_and_accumulate() -> None:
    one = Anchor.estimate(LLAMA.build(), curvature="identity", progress=False)
    same(one, Anchor.merge([one, one]))
    total = Anchor.accumulate(one, one, decay=0.5)
    for name, curvature in one.curvatures.items():
        assert_close(dense(total.curvatures[name]), 1.5 * dense(curvature), **EXACT)


@pytest.fixture(scope="module")
def first() -> Anchor:
    """The first part."""
    return anchor(LLAMA, PARTS[0])


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"curvature": "diagonal"}, "curvature is 'kronecker' in one, 'diagonal' in another"),
    "labels": ({"fisher": "data"}, "fisher is 'sampled' in one, 'data' in another"),
    "per": ({"per": "sequence"}, "per is 'token' in one, 'sequence' in another"),
    "draws": ({"draws": 2}, "draws is 1 in one, 2 in another"),
    "positions": ({"fraction": 0.5}, r"fraction is 1\.0 in one, 0\.5 in another"),
    "layers": ({"targets": ["q_proj"]}, r"(?s)'model\.layers\.0\.mlp\.down_proj' is in one alone.*--targets"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_measurements_are_refused(first: Anchor, case: str) -> None:
    options, says = OTHERS[case]
    other = anchor(LLAMA, PARTS[1], **options)
    for combine in (lambda a, b: Anchor.merge([a, b]), Anchor.accumulate):
        with pytest.raises(HoldfastError, match=says):
            combine(first, other)


def test_other_weights_are_refused_by_the_first_that_differs(first: Anchor) -> None:
    model = LLAMA.build()
    with torch.no_grad():
        for name in ("mlp.up_proj", "self_attn.o_proj"):
            layer: Any = model.get_submodule(f"model.layers.1.{name}")
            layer.weight[0, 0] += 1e-6
    other = Anchor.estimate(model, LLAMA.batches(2, LLAMA.rows[PARTS[1]]), progress=False)
    with pytest.raises(HoldfastError, match=r"(?s)layer 'model\.layers\.1\.self_attn\.o_proj' differ.*accumulate"):
        Anchor.merge([first, other])
    assert Anchor.accumulate(first, other).weights == other.weights  # tasks have weights of their own


def test_the_same_data_twice_is_refused(first: Anchor) -> None:
    with pytest.raises(HoldfastError, match="same data with the same seed"):
        Anchor.merge([first, anchor(LLAMA, PARTS[1]), first])
    again = Anchor.merge([first, anchor(LLAMA, PARTS[0], seed=1)])  # other labels of the same data
    assert again.items == 2 * first.items


def test_one_anchor_alone_is_refused(first: Anchor) -> None:
    for few in ([], [first]):
        with pytest.raises(HoldfastError, match="takes two anchors or more"):
            Anchor.merge(few)


def test_other_structures_are_refused(first: Anchor) -> None:
    other = anchor(LLAMA, PARTS[1])
    name = next(iter(other.curvatures))
    changed: Any = other.curvatures[name]
    whole: Any = first.curvatures[name]
    other.curvatures[name] = Kronecker.of(changed.inputs.matrix[:-1, :-1], changed.gradients.matrix)
    assert whole.shape != other.curvatures[name].shape
    with pytest.raises(HoldfastError, match=rf"(?s)store layer '{name}' differently.*memory budget"):
        Anchor.merge([first, other])


@pytest.mark.parametrize("combine", [lambda a, b: Anchor.merge([a, b]), Anchor.accumulate])
def test_eigenvectors_do_not_add_up(combine: Any) -> None:
    parts = [anchor(LLAMA, rows, curvature="eigen") for rows in PARTS[:2]]
    with pytest.raises(HoldfastError, match=r"(?s)do not add up.*both anchors"):
        combine(*parts)


@pytest.mark.parametrize("kind", [name for name in MEASURED if name not in BANDS])
def test_precisions_of_tasks_are_summed(kind: str) -> None:
    old, new = (anchor(NETWORKS["mlp"], rows, curvature=kind) for rows in PARTS[:2])
    total = Anchor.accumulate(old, new, decay=0.25)
    approximate = not MEASURED[kind].linear
    assert total.facts.get("approximation") == (APPROXIMATION if approximate else None)
    for name, curvature in total.curvatures.items():
        exact = 0.25 * dense(old.curvatures[name]) + dense(new.curvatures[name])
        assert_close(dense(curvature).trace(), exact.trace(), **EXACT)
        if not approximate:
            assert_close(dense(curvature), exact, **EXACT)


@pytest.mark.parametrize("kind", BANDS)
def test_bands_of_several_tasks_are_refused(kind: str) -> None:
    old, new = (anchor(NETWORKS["mlp"], rows, curvature=kind) for rows in PARTS[:2])
    with pytest.raises(HoldfastError, match=rf"(?s)curvatures '{kind}' of several tasks.*list of anchors"):
        Anchor.accumulate(old, new)


def partial_traces(curvatures: Sequence[tuple[float, Curvature]]) -> list[torch.Tensor]:
    """What is left of a sum of C after the trace over inputs, (out, out), and over outputs, (in, in)."""
    out, inn = curvatures[0][1].shape
    total = sum(share * dense(c) for share, c in curvatures).reshape(out, inn, out, inn)
    return [torch.einsum("iaja->ij", total), torch.einsum("iaib->ab", total)]


def test_a_sum_of_products_keeps_both_partial_traces() -> None:
    old, new = (anchor(NETWORKS["mlp"], rows) for rows in PARTS[:2])
    total = Anchor.accumulate(old, new, decay=0.25)
    for name, curvature in total.curvatures.items():
        exact = partial_traces([(0.25, old.curvatures[name]), (1.0, new.curvatures[name])])
        assert_close(partial_traces([(1.0, curvature)]), exact, **EXACT)


@pytest.mark.parametrize("side", ["inputs", "gradients"])
def test_a_sum_of_products_is_exact_where_one_side_agrees(side: str) -> None:
    s, t, g, h = ((lambda m: m @ m.T)(drawn(seed, width, 5)) for seed, width in enumerate((3, 3, 2, 2)))
    old, new = kronecker((s, g), (3 * s, h)) if side == "inputs" else kronecker((s, g), (t, 3 * g))
    total = Anchor.accumulate(old, new, decay=0.5).curvatures["layer"]
    move = drawn(9, 2, 3)
    assert_close(
        price(total, move),
        0.5 * price(old.curvatures["layer"], move) + price(new.curvatures["layer"], move),
        **EXACT,
    )


def test_a_side_without_curvature_adds_nothing() -> None:
    s, g, nothing = torch.eye(3).double(), torch.eye(2).double(), torch.zeros(2, 2).double()
    old, new = kronecker((s, nothing), (2 * s, g))
    assert_close(dense(Anchor.accumulate(old, new).curvatures["layer"]), dense(new.curvatures["layer"]), **EXACT)
    both = Anchor.accumulate(old, old).curvatures["layer"]
    assert_close(dense(both), torch.zeros(6, 6, dtype=torch.float64), rtol=0, atol=0)


def test_tasks_stay_on_record_and_do_not_merge(first: Anchor) -> None:
    second, third = (anchor(LLAMA, rows) for rows in PARTS[1:])
    total = Anchor.accumulate(Anchor.accumulate(first, second, decay=0.5), third, decay=0.5)
    assert [task["share"] for task in total.facts["tasks"]] == [0.25, 0.5, 1.0]
    assert [task["items"] for task in total.facts["tasks"]] == [first.items, second.items, third.items]
    assert total.facts["tasks"][0]["parts"][0]["data_sha256"] == first.facts["data_sha256"]
    assert "data_sha256" not in total.facts
    with pytest.raises(HoldfastError, match=r"(?s)a sum over them.*merge each task's anchors first"):
        Anchor.merge([total, first])


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_a_decay_that_is_none_is_refused(first: Anchor, decay: float) -> None:
    with pytest.raises(HoldfastError, match="decay="):
        Anchor.accumulate(first, first, decay)


def test_parts_of_one_file_are_refused(first: Anchor) -> None:
    """What stopped sooner is the beginning of what went on."""
    network = NETWORKS["llama"]
    parts = [Anchor.estimate(network.build(), network.batches(2)[:n], progress=False) for n in (1, 2)]
    for part in parts:
        part.facts["source"] = {"path": "old.txt", "sha256": "f00d"}
    with pytest.raises(HoldfastError, match=r"on old\.txt with the same seed"):
        Anchor.merge(parts)
    parts[0].facts["seed"] = 1
    assert Anchor.merge(parts).items == sum(part.items for part in parts)


def test_blocks_of_other_sizes_are_refused() -> None:
    network = NETWORKS["llama"]
    parts = [
        Anchor.estimate(network.build(), [batch], storage=storage, progress=False)
        for batch, storage in zip(network.batches(2), ("blocks:3", "blocks:4"), strict=False)
    ]
    with pytest.raises(HoldfastError, match="in blocks of another size"):
        Anchor.merge(parts)


def test_the_rank_of_a_sum_ends_at_the_width() -> None:
    network = NETWORKS["llama"]
    tasks = [Anchor.estimate(network.build(), [b], storage="low-rank:3", progress=False) for b in network.batches(1)]
    tasks *= 2
    total = tasks[0]
    for task in tasks[1:]:
        total = Anchor.accumulate(total, task)
    for name, curvature in total.curvatures.items():
        assert isinstance(curvature, TwoSided)
        tensors = curvature.tensors()
        roots = [t for key, t in tensors.items() if key.endswith("low-rank")]
        assert all(root.shape[1] <= root.shape[0] for root in roots), name
