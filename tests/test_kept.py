"""The random choice of examples itself: even, unbiased, and the same however the data is cut."""

from typing import Any

import pytest
import torch
from laws import dense, drawn
from torch import Tensor
from torch.testing import assert_close

from holdfast.curvature.examples import Calls, Examples
from holdfast.curvature.samples import Samples
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.rows.origin import Origin

MONTE_CARLO = 0.05  # relative: thousands of choices
SIZE = LayerSize(4, 3)


def offered(seed: int, keep: int, rows: tuple[Tensor, Tensor], lengths: list[int], per: Any = "token") -> Examples:
    """One batch of one layer, each sequence named by its number."""
    statistic = Examples(LayerSize(rows[1].shape[1], rows[0].shape[1]), Reading(keep=keep, seed=seed, per=per))
    statistic.add(*rows, origin=Origin(lengths, list(range(len(lengths)))))
    statistic.flush()
    return statistic


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_a_choice_is_unbiased_and_every_example_as_likely(per: str) -> None:
    lengths, rows = [2, 1, 3], (drawn(1, 6, 3), drawn(2, 6, 4))
    exact = dense(Samples.from_sums(SIZE, {"examples": offered(0, 9, rows, lengths, per)}, items=5))
    examples, keep = (6, 2) if per == "token" else (3, 1)
    total, counts = torch.zeros_like(exact), torch.zeros(examples)
    choices = 3000
    for seed in range(choices):
        statistic = offered(seed, keep, rows, lengths, per)
        kept = statistic.kept()
        assert (len(kept.priorities), statistic.rows) == (keep, examples)
        total += dense(Samples.from_sums(SIZE, {"examples": statistic}, items=5)) / choices
        taken = (kept.gradients[:, None, 0] == rows[1][[0, 1, 2, 3, 4, 5] if per == "token" else [0, 2, 3]]).all(dim=2)
        counts += taken.sum(dim=0)
    assert_close(counts / choices, torch.full_like(counts, keep / examples), rtol=MONTE_CARLO, atol=0)
    assert_close(total, exact, rtol=0, atol=MONTE_CARLO * float(exact.diagonal().max()))


@pytest.mark.parametrize("shards", [(slice(0, 3), slice(3, 6)), (slice(0, 1), slice(1, 6))])
def test_what_is_kept_of_shards_is_what_is_kept_of_all(shards: tuple[slice, ...]) -> None:
    rows = drawn(1, 6, 3), drawn(2, 6, 4)
    whole = Examples(SIZE, Reading(keep=4))
    whole.add(*rows, origin=Origin([1] * 6, list(range(6))))
    whole.flush()
    merged = Examples(SIZE, Reading(keep=4))
    for shard in shards:
        part = Examples(SIZE, Reading(keep=4))
        part.add(*(side[shard] for side in rows), origin=Origin([1] * len(rows[0][shard]), list(range(6))[shard]))
        part.flush()
        merged.merge(part.state())
    assert_close(merged.kept()._asdict(), whole.kept()._asdict(), rtol=0, atol=0)
    assert merged.rows == whole.rows
    again = Examples.restored(SIZE, Reading(keep=4), merged.state())
    assert_close(again.kept()._asdict(), whole.kept()._asdict(), rtol=0, atol=0)


def test_sequences_without_a_name_are_counted_on_after_a_stop() -> None:
    rows = drawn(1, 6, 3), drawn(2, 6, 4)

    def taken(statistic: Examples, shard: slice, batch: int) -> Examples:
        for draw in range(2):
            statistic.add(*(side[shard] for side in rows), origin=Origin([1, 1], None, draw, batch))
            statistic.flush()
        return statistic

    whole, stopped = (taken(Examples(SIZE, Reading(keep=4)), slice(0, 2), 0) for _ in range(2))
    again = Examples.restored(SIZE, Reading(keep=4), stopped.state())
    for batch in (1, 2):
        for statistic in (whole, again):
            taken(statistic, slice(2 * batch, 2 * batch + 2), batch)
    assert_close(again.kept()._asdict(), whole.kept()._asdict(), rtol=0, atol=0)
    assert len(set(whole.kept().priorities.tolist())) == 4


def test_rows_of_calls_of_different_lengths_are_put_together() -> None:
    calls = Calls([[2, 0, 1], [1, 0, 3]])  # rows 0 1 | 2 and 3 | 4 5 6
    assert calls.examples("token") == [2, 0, 3]
    tokens = [[0, 3], [1, -1], [2, 4], [-1, 5], [-1, 6]]
    assert calls.rows_of(torch.arange(5), "token").tolist() == tokens
    assert calls.rows_of(torch.tensor([3, 1]), "token").tolist() == [tokens[3], tokens[1]]
    assert calls.examples("sequence") == [1, 0, 1]
    sequences = [[0, 1, 3, -1], [2, 4, 5, 6]]
    assert calls.rows_of(torch.arange(2), "sequence").tolist() == sequences
    assert calls.rows_of(torch.tensor([1]), "sequence").tolist() == sequences[1:]


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_examples_away_from_the_device_are_the_same(place: Any) -> None:
    rows, kept = (drawn(1, 6, 3), drawn(2, 6, 4)), []
    for offload in (None, place):
        statistic = Examples(SIZE, Reading(keep=4, offload=offload))
        for key in range(5):
            statistic.add(*rows, origin=Origin([6], [key]))
            statistic.flush()
        kept.append(statistic.kept()._asdict())
    assert_close(kept[1], kept[0], rtol=0, atol=0)


@pytest.mark.parametrize(("per", "indexed"), [("token", False), ("sequence", False), ("sequence", True)])
def test_a_plan_tells_what_is_kept(per: Any, indexed: bool) -> None:
    size, reading = LayerSize(4, 3, indexed), Reading(keep=2, per=per, length=3)
    statistic = Examples(size, reading)
    for key in range(3):
        inputs = torch.tensor([0, 1, 2]) if indexed else drawn(1, 3, 3)
        statistic.add(inputs, drawn(2, 3, 4), origin=Origin([3], [key]))
        statistic.flush()
    kept = statistic.kept()
    assert Examples.amount(size, reading).used == kept.inputs.numel() + kept.gradients.numel()
