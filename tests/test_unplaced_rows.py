"""Rows that are not the batch's positions: experts of a mixture, positions that sequences share, pooled features."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import initialised
from laws import EXACT, drawn, same
from networks import NETWORKS, Batch, Network
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.likelihoods.categorical import Categorical
from holdfast.rows.choice import RowChoice

EXPERTS = ["experts.0", "experts.1"]
UNPLACED = "nothing tells which sequence"


class Mixture(nn.Module):
    """Each position goes to one of two experts, which is given the positions routed to it, (routed, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        taken, out = (rows[:, 0] > 0).long(), torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            chosen = (taken == number).nonzero().squeeze(1)
            out = out.index_add(0, chosen, expert(rows[chosen]))
        return self.head(torch.tanh(out).view_as(x))


def scored(model: nn.Module, batch: Batch) -> Categorical:
    """Every position that is no padding has a label."""
    logits, mask = model(batch["x"]), batch["attention_mask"] != 0
    sequence = torch.arange(len(mask))[:, None].expand_as(mask)
    return Categorical(logits.flatten(0, 1), batch["labels"].flatten(), mask.flatten(), sequence.flatten())


def data(*, padded: bool = True) -> Batch:
    """Three sequences of at most five positions, the padding without a label."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    mask = mask if padded else torch.ones_like(mask)
    labels = torch.randint(3, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"x": drawn(4, 3, 5, 4), "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def one_by_one(batch: Batch) -> list[Batch]:
    """The sequences as batches of their own."""
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(len(batch["x"]))]


def anchor_of(batches: list[Batch], **options: Any) -> Anchor:
    """Of the experts, with the data's labels."""
    options = {"targets": EXPERTS, "fisher": "data", "forward_loss": scored, "progress": False} | options
    return Anchor.estimate(initialised(Mixture()), batches, **options)


@pytest.mark.parametrize(
    ("curvature", "per"), [("kronecker", "sequence"), ("diagonal", "sequence"), ("samples", "token")]
)
def test_routed_rows_are_not_taken_for_sequences(curvature: str, per: str) -> None:
    with pytest.raises(HoldfastError, match=UNPLACED) as raised:
        anchor_of([data()], curvature=curvature, per=per)
    assert "'experts." in str(raised.value)


def test_the_rows_of_a_batch_of_one_are_that_sequences() -> None:
    batches, model = one_by_one(data()), initialised(Mixture())
    anchor = anchor_of(batches, curvature="diagonal", per="sequence")
    for name in EXPERTS:
        weight, wanted = model.get_submodule(name).weight, torch.zeros(4, 4, dtype=torch.float64)
        for batch in batches:
            logits = model(batch["x"]).flatten(0, 1)
            loss = F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100, reduction="sum")
            wanted += torch.autograd.grad(loss, weight)[0].square()
        assert_close(anchor.curvatures[name].tensors()["fisher"], wanted / anchor.items, **EXACT)


def test_padding_that_can_not_be_left_out_is_warned_of_once() -> None:
    for batches in ([data(), data()], one_by_one(data())):
        with pytest.warns(UserWarning, match="padding") as caught:
            anchor_of(batches, curvature="kronecker")
        told = [str(one.message) for one in caught if "padding" in str(one.message)]
        assert len(told) == 1
        assert "'experts." in told[0]


def without_positions(name: str) -> Network:
    """A network whose model makes the numbers of its positions itself."""

    class Plain(Network):
        def collate(self, rows: list[Batch], side: str = "right", extra: int = 0) -> Batch:
            return {k: v for k, v in super().collate(rows, side, extra).items() if k != "position_ids"}

    return Plain(**vars(NETWORKS[name]))


@pytest.mark.parametrize("name", ["llama", "bert-tokens", "bert-sequence", "mlp"])
def test_positions_and_pooled_features_are_not_warned_of(name: str) -> None:
    network = without_positions(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anchor_of([data(padded=False)], curvature="kronecker")
        options = {"targets": network.targets, "forward_loss": network.forward_loss, "curvature": "kronecker"}
        Anchor.estimate(network.build(), network.batches(2), progress=False, **options)


def test_pooled_features_are_one_row_of_each_sequence() -> None:
    network, found = NETWORKS["bert-sequence"], []
    for size in (1, 5):
        options: dict[str, Any] = {"targets": ["pooler.dense", "classifier"], "per": "sequence", "progress": False}
        found.append(Anchor.estimate(network.build(), network.batches(size), curvature="kronecker", **options))
    same(found[1], found[0])


def test_positions_that_all_sequences_share_are_refused() -> None:
    network = replace(without_positions("gpt2"), targets=["wpe"])
    options: dict[str, Any] = {"targets": network.targets, "curvature": "diagonal", "progress": False}
    with pytest.raises(HoldfastError, match=UNPLACED):
        Anchor.estimate(network.build(), network.batches(2), per="sequence", **options)


def test_a_call_without_rows_has_no_sequences() -> None:
    choice = RowChoice(1.0, 0)
    choice.begin(0, None, None)
    assert choice.origin(0, torch.empty(0, 3), 0).lengths == []
