"""An anchor that was read from a file and one of a model on an accelerator become one."""

from typing import Any

import pytest
from elsewhere import Elsewhere, elsewhere
from laws import same
from networks import NETWORKS
from torch import Tensor

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.eigen import Eigen

LLAMA = NETWORKS["llama"]
KINDS = {name: catalogue.curvature(name) for name in catalogue.names("curvature")}
MERGING = [name for name, kind in KINDS.items() if kind.statistics() and kind is not Eigen]
QUERY, KEY = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj")


def anchor(rows: slice, **options: Any) -> Anchor:
    """An anchor of some rows."""
    return Anchor.estimate(LLAMA.build(), LLAMA.batches(2, LLAMA.rows[rows]), progress=False, **options)


def moved(plain: Anchor) -> Anchor:
    """The same on the accelerator; layers that share a tensor share it there."""
    known: dict[int, Elsewhere] = {}

    def one(tensor: Tensor) -> Elsewhere:
        return known.setdefault(tensor.data_ptr(), elsewhere(tensor))

    curvatures = {
        name: type(curvature).from_tensors({key: one(tensor) for key, tensor in curvature.tensors().items()})
        for name, curvature in plain.curvatures.items()
    }
    return Anchor(curvatures, plain.weights, plain.kind, plain.fisher, plain.items, plain.facts)


@pytest.mark.parametrize("kind", MERGING)
def test_parts_on_two_devices_merge_to_what_they_are_on_one(kind: str) -> None:
    stored, fresh = anchor(slice(0, 3), curvature=kind), anchor(slice(3, None), curvature=kind)
    for parts in ([stored, moved(fresh)], [moved(stored), fresh]):
        merged = Anchor.merge(parts)
        same(Anchor.merge([stored, fresh]), merged)
        devices = {t.device.type for curvature in merged.curvatures.values() for t in curvature.tensors().values()}
        assert devices == {"cpu"}


@pytest.mark.parametrize("kind", [name for name in MERGING if KINDS[name].linear] + ["kronecker"])
def test_tasks_on_two_devices_accumulate(kind: str) -> None:
    stored, fresh = anchor(slice(0, 3), curvature=kind), anchor(slice(3, None), curvature=kind)
    same(Anchor.accumulate(stored, fresh, decay=0.5), Anchor.accumulate(stored, moved(fresh), decay=0.5))


def test_layers_go_on_sharing_what_they_shared_on_the_accelerator() -> None:
    merged: dict[str, Any] = Anchor.merge([anchor(slice(0, 3)), moved(anchor(slice(3, None)))]).curvatures
    assert merged[QUERY].inputs.matrix is merged[KEY].inputs.matrix
    assert merged[QUERY].gradients.matrix is not merged[KEY].gradients.matrix
