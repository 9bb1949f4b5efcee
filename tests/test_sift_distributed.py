"""Two processes train SIFT as one does, and send its short vectors only; see `sift_ddp_worker.py`."""

from pathlib import Path
from typing import Any

import pytest
import sift_ddp_worker as worker
import torch
from two_processes import in_two


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes says, case by case."""
    return in_two(Path(worker.__file__), tmp_path_factory.mktemp("ranks") / "cases.json")


@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_train_as_one(ranks, case):
    one = worker.alone(case)
    for rank in ranks:
        two = rank[case]
        for name, tensor in one["bits"].items():
            torch.testing.assert_close(torch.tensor(two["masks"][name]), one["masks"][name])
            torch.testing.assert_close(torch.tensor(two["bits"][name]).double(), tensor, rtol=1e-6, atol=1e-8)
    assert ranks[0][case]["bits"] == ranks[1][case]["bits"]


@pytest.mark.parametrize("case", worker.CASES)
def test_only_the_entries_are_sent(ranks, case):
    for rank in ranks:
        assert rank[case]["sent"] == rank[case]["entries"]
        assert rank[case]["buffers"] == []


def test_several_processes_want_a_choice_before_training(ranks):
    assert all("not chosen yet" in said for rank in ranks for said in rank["lazily"])


def test_sharded_weights_are_refused(ranks):
    assert all("FSDP shards them" in said for rank in ranks for said in rank["sharded"])
