"""`holdfast anchor` where it is large: plans, budgets, offloading, stopping, resuming, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import LENGTH, files_in, out, place, refused, run, succeeded  # noqa: F401
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.measuring.measurement import Measurement

SMALL = ("--targets", "q_proj,down_proj", *LENGTH)
GB = 1e9


def asked(place, out, *more):  # noqa: F811
    """The arguments of a quick measurement in several batches."""
    return ("anchor", "--model", place.model, "--source", place.source, "--out", out, *SMALL, "--batch-size", 4, *more)


def facts(folder):
    """What `anchor.json` says."""
    return json.loads((folder / "anchor.json").read_text())["facts"]


def alike(one, other, **tolerance):
    """Two anchor folders hold the same numbers."""
    first, second = (Anchor.load(folder) for folder in (one, other))
    assert (list(first.curvatures), first.items) == (list(second.curvatures), second.items)
    for name, curvature in first.curvatures.items():
        assert_close(second.curvatures[name].tensors(), curvature.tensors(), **tolerance)


@pytest.fixture(scope="module")
def plain(place):  # noqa: F811
    """The same anchor without any of it."""
    succeeded(*asked(place, place.path / "plain"))
    return place.path / "plain"


def test_a_plan_needs_no_weights(place, tmp_path):  # noqa: F811
    (tmp_path / "model").mkdir()
    shutil.copy(place.model / "config.json", tmp_path / "model")
    done = succeeded("anchor", "--plan", "--model", tmp_path / "model", "--json")
    assert {(row["out"], row["inn"]) for row in done.json["rows"]} == {(32, 32), (64, 32), (32, 64)}
    assert sum(row["count"] for row in done.json["rows"]) == 14
    shown = succeeded("anchor", "--plan", "--model", tmp_path / "model", "--curvature", "diagonal").out
    assert "Plan: diagonal" in shown
    assert "Other choices" in shown


def test_the_plan_of_a_known_model():
    done = succeeded("anchor", "--plan", "--model", "llama-3.1-8b", "--json").json
    choices = {(one["kind"], one["storage"]): one["bytes"] for one in done["choices"]}
    assert_close(choices["kronecker", "full"]["stored"] / GB, 46.0, rtol=0.01, atol=0)
    assert_close(choices["kronecker", "full"]["stored_bfloat16"] / GB, 23.0, rtol=0.01, atol=0)
    assert_close(choices["kronecker", "low-rank:256"]["stored_bfloat16"] / GB, 1.15, rtol=0.02, atol=0)
    assert choices["tridiagonal", "full"]["stored_bfloat16"] is None
    assert done["total"] == choices["kronecker", "full"]
    small = succeeded("anchor", "--plan", "--model", "llama-3.1-8b", "--memory", "20GiB", "--json").json
    assert 19 * 2**30 < small["total"]["used"] <= small["budget"] == 20 * 2**30
    assert small["choices"] == done["choices"]
    shown = succeeded("anchor", "--plan", "--model", "llama-3.1-8b").out
    assert "layers below model.layers.0-31" in shown
    assert [line.split()[0] for line in shown.splitlines() if "_proj" in line] == [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip


def test_a_budget_is_planned_before_time_is_spent(place, tmp_path, out):  # noqa: F811
    done = succeeded(*asked(place, tmp_path / "a", "--memory", "40KB", "--json"))
    assert done.json["layers"] == 4  # and the table is not on standard output
    assert "Plan: kronecker" in done.err
    assert "low-rank:16" in done.err
    plan = facts(tmp_path / "a")["plan"]
    assert plan["bytes"] <= plan["budget"] == 40_000
    assert plan["layers"]["model.layers.0.mlp.down_proj"]["inputs"] == "low-rank:16"
    assert done.json["captured"]["side"] in ("inputs", "gradients")
    assert 0 < done.json["captured"]["least"] <= done.json["captured"]["mean"] <= 1
    assert "Sketches hold" in succeeded(*asked(place, tmp_path / "b", "--memory", "40KB")).err
    refused(*asked(place, out, "--memory", "100B"), says=["takes at least", "the budget is 100"])
    refused(*asked(place, out, "--memory", "lots"), says=["memory: 'lots' is no amount of memory", "4GiB"])


def test_factors_as_asked(place, tmp_path, out):  # noqa: F811
    succeeded(*asked(place, tmp_path / "a", "--factors", "blocks:8"))
    assert set(facts(tmp_path / "a")["plan"]["layers"]["model.layers.0.mlp.down_proj"].values()) == {"blocks:8"}
    refused(*asked(place, out, "--factors", "blobs:8"), says=["blobs"])


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloading_changes_nothing(place, plain, tmp_path, where):  # noqa: F811
    succeeded(*asked(place, tmp_path / "a", "--offload", where))
    alike(plain, tmp_path / "a", rtol=1e-5, atol=1e-7)


def test_stopping_when_it_is_stable(place, plain, tmp_path):  # noqa: F811
    done = succeeded(*asked(place, tmp_path / "a", "--until", 0.9, "--json"))
    assert done.json["agreement"] < 0.9
    assert done.json["items"] < Anchor.load(plain).items
    short = run(*asked(place, tmp_path / "b", "--until", 1e-6, "--json"))
    assert short.json["items"] == Anchor.load(plain).items
    assert "More source data would make the curvature better known" in short.err


def interrupted_after(batches, monkeypatch):
    """A Ctrl-C in the batch after so many."""
    add, seen = Measurement.add, []

    def stop(self, batch, *more):
        seen.append(batch)
        if len(seen) == batches:
            os.kill(os.getpid(), signal.SIGINT)
        return add(self, batch, *more)

    monkeypatch.setattr(Measurement, "add", stop)


def test_what_was_interrupted_goes_on(place, plain, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "a"
    refused(*asked(place, folder, "--resume"), says=["nothing to go on from", "start again without --resume"])
    with monkeypatch.context() as patched:
        interrupted_after(3, patched)
        refused(*asked(place, folder), status=130,
                says=["interrupted (SIGINT); what was done so far is in", "a.partial",
                      "the same command with --resume goes on"])  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    refused(*asked(place, folder), says=["an interrupted measurement is kept in", "a.partial", "--resume"])
    refused(*asked(place, folder, "--resume", "--seed", 1), says=["can't be resumed", "seed"])
    succeeded(*asked(place, folder, "--resume"))
    alike(plain, folder, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_several_processes_are_one(place, plain, tmp_path):  # noqa: F811
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [*launch, Path(sys.executable).parent / "holdfast", *asked(place, tmp_path / "a", "--json")]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=150, env=quiet)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == Anchor.load(plain).items  # one of them printed
    alike(plain, tmp_path / "a", rtol=1e-5, atol=1e-7)
    assert sorted(files_in(tmp_path)) == ["a/anchor.json", "a/anchor.safetensors"]
