"""Two processes give the anchor of one; see `anchor_worker.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anchor_worker as worker
import pytest
import torch
from torch.testing import assert_close

import holdfast
from holdfast.anchor import Anchor
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.measuring.ranks import Op, Ranks
from holdfast.measuring.sharding import owners_of

BALANCED = 0.03  # two blocks of equal layers
EXACT = 1e-9  # of a layer's largest entry, in float64: another order of summation
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> what the two processes said."""
    out = tmp_path_factory.mktemp("ranks") / "cases.json"
    finished = subprocess.run(
        [*LAUNCHER, str(Path(worker.__file__)), str(out)], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(out.read_text())


def sharded(name: str) -> bool:
    """Whether the case's sums lie on one rank each."""
    return worker.CASES[name]["options"].get("shard", False)


@pytest.mark.parametrize("name", worker.CASES)
def test_every_rank_holds_the_anchor_of_one_process(name: str, measured: dict[str, Any]) -> None:
    for rank, found in enumerate(measured[name]["ranks"]):
        assert (found["items"], found["data"]) == (True, True)
        if sharded(name) and rank > 0:
            assert found["layers"] == 0
        else:
            assert found["layers"] > 0
            assert_close(found["distance"], 0.0, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", worker.SHARDABLE)
def test_shards_hold_each_sum_once(kind: str, measured: dict[str, Any]) -> None:
    first, second = (found["numbers"] for found in measured[f"{kind} shard"]["ranks"])
    (whole, other) = (found["numbers"] for found in measured[f"{kind} llama"]["ranks"])
    assert whole == other
    assert [sum(both) for both in zip(first, second, strict=True)] == whole
    assert_close(first, second, rtol=BALANCED, atol=0)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(("at", "what"), [("forward", "in the loss"), ("backward", "division or modulo by zero")])
def test_a_failure_on_one_rank_ends_all(at: str, what: str, shard: bool, measured: dict[str, Any]) -> None:
    well, failed = measured["failures"][f"{at}, shard={shard}"]
    assert failed.startswith("ZeroDivisionError")
    assert what in failed
    assert well == f"PeerError: rank 1 failed: {failed}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other data", "the ranks were given different source data"),
        ("fewer data", "the ranks were given different source data"),
        ("no data", "the source data has no scored item"),
        ("after it all", ""),
    ],
)
def test_ranks_are_told_alike(name: str, message: str, measured: dict[str, Any]) -> None:
    for said in measured["failures"][name]:
        assert said.removeprefix("HoldfastError: ").partition("\n")[0] == message


def test_a_batch_that_only_one_rank_reads_fails_on_both(measured: dict[str, Any]) -> None:
    first, second = measured["failures"]["broken batch"]
    assert second.startswith("TypeError")
    assert first == f"PeerError: rank 1 failed: {second}"


@pytest.mark.parametrize("name", worker.RESUMED)
def test_an_interrupt_on_one_rank_stops_all_and_loses_nothing(name: str, measured: dict[str, Any]) -> None:
    found = measured["resumed"][name]
    assert found["said"][0].startswith("PeerError: another rank was interrupted")
    assert found["said"][1].startswith("KeyboardInterrupt")
    for rank, one in enumerate(found["ranks"]):
        assert (one["stored"], one["removed"]) == (True, True)
        if name != "shard" or rank == 0:
            assert_close(one["got"], 0.0, rtol=0, atol=EXACT)
    # Five batches in three rounds: one was left for rank 0, and a second pass goes over all. With shards the first
    # batch is looked at before, so the interrupt came a round earlier.
    wanted = {"two passes": [4, 2], "shard": [3, 2]}
    assert [one["batches"] for one in found["ranks"]] == wanted.get(name, [1, 0])


def test_what_another_rank_holds_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="save it on rank 0"):
        Anchor({}, {}, "kronecker", "sampled", 5).save(tmp_path / "anchor")
    assert not (tmp_path / "anchor").exists()


def test_one_process_alone_is_all_ranks() -> None:
    alone, total = Ranks(), torch.ones(2)
    alone.add_up(total)
    assert_close(total, torch.ones(2), rtol=0, atol=0)
    assert alone.gathered("here") == ["here"]
    assert alone.together(lambda: (3, 4)) == [[3, 4]]
    assert alone.exchange(Op.DONE, 5)[0][:2] == [0, 5]
    assert alone.turn(7) == (0, 0)
    state = {"sum": total}
    assert alone.moved(state, 0, 0) is state


def test_sums_are_spread_by_size_and_groups_stay_together() -> None:
    sizes = {"q": LayerSize(8, 8), "k": LayerSize(4, 8), "up": LayerSize(4, 8), "down": LayerSize(2, 12)}
    groups = {"q": "q", "k": "q", "up": "up"}
    # q and k: 64 for their inputs, 64 and 16 for their gradients; up: 64 + 16; down: 144 + 4, the largest
    owners = owners_of(groups, sizes, [Kronecker], Reading(), 2)
    assert owners == {"down": 0, "q": 1, "k": 1, "up": 1}


def test_the_package_is_a_command_for_launchers() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "holdfast", "--version"], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert (finished.returncode, finished.stdout) == (0, f"holdfast {holdfast.__version__}\n")
