"""Both ends of a transfer take the same way, also where one has an accelerator's tensors."""

from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere
from torch import Tensor
from torch.testing import assert_close

from holdfast.curvature.kronecker import Kronecker
from holdfast.measuring import ranks, sharding
from holdfast.measuring.ranks import Ranks

CONTROL = "gloo"


class Mail:
    """What torch.distributed does between two ranks: NCCL has no way to the CPU's memory."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []

    def send_object_list(self, found: list[Any], dst: int, group: Any) -> None:
        assert group == CONTROL
        self.sent.append((CONTROL, found))

    def recv_object_list(self, told: list[Any], src: int, group: Any) -> None:
        assert group == CONTROL
        told[:] = self.sent.pop(0)[1]

    def send(self, tensor: Tensor, dst: int, group: Any) -> None:
        assert isinstance(tensor, Elsewhere) == (group is None)
        self.sent.append((group, tensor.as_subclass(Tensor).clone()))

    def recv(self, tensor: Tensor, src: int, group: Any) -> None:
        way, arrived = self.sent.pop(0)
        assert way == group
        assert isinstance(tensor, Elsewhere) == (group is None)
        tensor.as_subclass(Tensor).copy_(arrived)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Ranks, Ranks]:
    """Ranks 0 and 1 under NCCL, with gloo beside it, in one process: what rank 1 gives is there when rank 0 takes."""
    monkeypatch.setattr(ranks, "dist", Mail())
    empty = torch.empty

    def allocated(*args: Any, device: Any = "cpu", **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return elsewhere(made) if torch.device(device).type == "cuda" else made

    monkeypatch.setattr(torch, "empty", allocated)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: DEVICE.index)
    return Ranks(0, 2, CONTROL, direct=True), Ranks(1, 2, CONTROL, direct=True)


def state() -> dict[str, Tensor]:
    """A matrix, an empty tensor, and a count that lies in the CPU's memory all along."""
    return {"a": elsewhere(torch.arange(6.0).reshape(2, 3)), "b": elsewhere(torch.ones(0)), "c": torch.tensor([3])}


def test_what_moves_to_another_ranks_memory_leaves_the_accelerator_first(pair: tuple[Ranks, Ranks]) -> None:
    first, second = pair
    assert second.moved(state(), 1, 0) is None
    arrived = first.moved(None, 1, 0)
    assert arrived is not None
    assert {type(tensor) for tensor in arrived.values()} == {Tensor}
    for name, tensor in state().items():
        assert_close(arrived[name], tensor.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_rows_go_from_accelerator_to_accelerator(
    device: str, pair: tuple[Ranks, Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    monkeypatch.setattr(Elsewhere, "to", lambda self, place: self if torch.device(place) == DEVICE else self.cpu())
    monkeypatch.setattr(Tensor, "to", lambda self, place: elsewhere(self) if torch.device(place) == DEVICE else self)
    second.give(0, "about", list(state().values()))
    said, arrived = first.take(1, torch.device(device, 0))
    assert said == "about"
    for got, tensor in zip(arrived, state().values(), strict=True):
        assert isinstance(got, Elsewhere) == (device == "cuda")
        assert_close(got.cpu(), tensor.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize(("device", "landing"), [("cuda:1", "cuda:1"), ("cpu", "cuda:0"), ("meta", "cuda:0")])
def test_nccl_lands_on_an_accelerator(device: str, landing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert ranks._landing(device) == torch.device(landing)


def test_finished_shards_come_to_the_first_ranks_memory(
    pair: tuple[Ranks, Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, gradients = torch.eye(3), torch.eye(2)
    own = {
        "layer": Kronecker.from_tensors(
            {n: elsewhere(t) for n, t in Kronecker.of(inputs, gradients).tensors().items()}
        )
    }
    names = {"layer": {name: f"layer/{name}" for name in own["layer"].tensors()}}
    monkeypatch.setattr(Ranks, "gathered", lambda self, value: [names])
    assert sharding.finished(own, {"layer": 1}, Kronecker, pair[1]) == {}
    found = sharding.finished({}, {"layer": 1}, Kronecker, pair[0])
    assert {type(tensor) for tensor in found["layer"].tensors().values()} == {Tensor}
    assert_close(found["layer"].inputs.diagonal(), inputs.diagonal(), rtol=0, atol=0)
