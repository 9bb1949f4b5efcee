"""Running sums away from the model: the same numbers, in mapped files that leave nothing behind."""

import gc
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import NETWORKS
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature import offload
from holdfast.curvature.curvature import Coupled
from holdfast.curvature.moments import GradientMoment
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.measuring.measurement import Summation

MEASURED = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
NETWORK = NETWORKS["llama"]
SIZE = LayerSize(40, 6)


def anchored(kind: str, **options: Any) -> Anchor:
    """An anchor of the tiny Llama."""
    return Anchor.estimate(NETWORK.build(), NETWORK.batches(2), curvature=kind, progress=False, **options)


def mapped_files() -> list[str]:
    """What this process maps of holdfast's own."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/holdfast-" in line]


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_the_curvature_is_the_same(kind: str, place: str) -> None:
    kept, away = anchored(kind), anchored(kind, offload=place)
    for name, curvature in kept.curvatures.items():
        assert_close(away.curvatures[name].tensors(), curvature.tensors(), rtol=0, atol=0)


@pytest.mark.parametrize("storage", ["blocks:3", "low-rank:2", "diagonal"])
def test_every_storage_may_lie_on_the_disk(storage: str) -> None:
    kept, away = anchored("kronecker", storage=storage), anchored("kronecker", storage=storage, offload="disk")
    for name, curvature in kept.curvatures.items():
        assert_close(away.curvatures[name].tensors(), curvature.tensors(), rtol=0, atol=0)


def test_sums_on_the_disk_are_mapped_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    statistic = GradientMoment(SIZE, Reading(offload="disk"))
    before = len(mapped_files())
    statistic.add(torch.randn(5, 40))
    (line,) = mapped_files()[before:]
    assert line.endswith("(deleted)")  # nothing to leave behind, even where the process is killed
    assert str(tmp_path) in line
    start, end = (int(address, 16) for address in line.split()[0].split("-"))
    assert start <= statistic.result().data_ptr() < end
    assert end - start >= 4 * 40 * 40
    assert list(tmp_path.iterdir()) == []
    del statistic
    gc.collect()
    assert len(mapped_files()) == before


def test_a_whole_measurement_leaves_no_file_and_no_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    anchored("kronecker", offload="disk")
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert mapped_files() == []


def test_states_of_sums_on_the_disk_merge() -> None:
    rows = torch.randn(6, 40, dtype=torch.float64)
    one, other = (GradientMoment(SIZE, Reading(offload="disk")) for _ in range(2))
    one.add(rows[:2])
    other.add(rows[2:])
    again = GradientMoment.restored(SIZE, Reading(offload="disk"), other.state())
    assert len(mapped_files()) >= 3
    one.merge(again.state())
    assert_close(one.factor(1.0).times(torch.eye(40, dtype=torch.float64)), rows.T @ rows)


def test_rows_of_another_device_are_summed_there_first() -> None:
    total = torch.ones(2, 2)
    rows: Any = SimpleNamespace(device=torch.device("meta"))  # stands for an accelerator
    with offload.beside(rows, total, lambda like: torch.zeros(2, 2)) as part:
        part += 3
        assert_close(total, torch.ones(2, 2))
    assert_close(total, torch.full((2, 2), 4.0))
    with offload.beside(torch.ones(1), total, torch.zeros_like) as part:
        assert part is total


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HoldfastError, match=r"no room for .* of running sums") as refused:
        anchored("kronecker", offload="disk")
    assert "TMPDIR" in refused.value.remedy


def test_unknown_places_are_refused() -> None:
    with pytest.raises(HoldfastError, match="offload='gpu'"):
        anchored("kronecker", offload="gpu")


@pytest.mark.parametrize("kind", MEASURED)
def test_sums_are_let_go_of_as_curvatures_are_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = catalogue.curvature(kind)
    finish, from_sums = Summation.curvatures, made.from_sums
    sums: dict[int, Statistic] = {}
    held: list[int] = []  # numbers of all sums at each layer's turn

    def finishing(self: Summation, *args: Any, **options: Any) -> Any:
        sums.clear()
        sums.update({id(statistic): statistic for own in self.sums.values() for statistic in own.values()})
        return finish(self, *args, **options)

    def making(cls: Any, *args: Any) -> Any:
        held.append(sum(statistic.sum.numel() for statistic in sums.values() if statistic.sum is not None))
        return from_sums(*args)

    monkeypatch.setattr(Summation, "curvatures", finishing)
    monkeypatch.setattr(made, "from_sums", classmethod(making))
    anchored(kind)
    assert held == sorted(held, reverse=True)
    assert [statistic.sum for statistic in sums.values()] == [None] * len(sums)
    if not issubclass(made, Coupled) and held[0]:
        assert held[-1] < held[0] / 5
