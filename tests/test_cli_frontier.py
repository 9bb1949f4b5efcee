"""`holdfast frontier`: a study of tiny runs from the command line, interrupted, killed and joined."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("optuna")

from cli_runs import place, refused, run, succeeded
from peft import PeftModel
from torch.testing import assert_close

from holdfast import checkpoints
from holdfast.frontier import trial
from holdfast.frontier.pool import Event
from holdfast.language_model import load_model

__all__ = ["place"]
WAYS = [
    "plain",
    "early-stopping",
    {"name": "held", "curvature": "kronecker", "strength": [0.5, 50]},
    {"name": "mad", "training": {"learning_rate": 1e30}},
]


def write(place, path, ways=WAYS, steps=4, **more):
    """A recipe of the tiny model."""
    training = {"steps": steps, "learning_rate": 1e-2, **more.pop("training", {})}
    base = {"model": str(place.model), "target": str(place.target), "source": str(place.source), "length": 48}
    path.write_text(yaml.safe_dump({"base": {**base, "training": training}, "ways": ways, "seeds": 2, **more}))
    return path


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    """A finished study: three settings that run and one that can't, two seeds."""
    folder = tmp_path_factory.mktemp("study")
    recipe = write(place, folder / "frontier.yaml")
    done = succeeded("frontier", recipe, "--out", folder / "out", "--processes", 2, "--json")
    return recipe, folder / "out", done


def stamps(out):
    """When every file of the runs and the anchors was written."""
    return {path: path.stat().st_mtime_ns for folder in ("trials", "anchors") for path in (out / folder).rglob("*")}


def test_every_run_has_a_row_in_the_house_form(study):
    _, out, done = study
    results = json.loads((out / "results.json").read_text())
    assert results == done.json
    found = [(row["way"], row["setting"], row["seed"], row["penalty"], row["strength"]) for row in results["rows"]]
    assert found == [
        ("plain", "", 0, "none", None),
        ("plain", "", 1, "none", None),
        ("held", "strength 0.5", 0, "kronecker", 0.5),
        ("held", "strength 0.5", 1, "kronecker", 0.5),
        ("held", "strength 50", 0, "kronecker", 50.0),
        ("held", "strength 50", 1, "kronecker", 50.0),
    ]
    for row in results["rows"]:
        assert [moment["step"] for moment in row["along"]] == [1, 2, 3, 4]
        assert_close(row["along"][-1]["target"], row["target_after"])
        assert row["anchor_seconds"] > 0 or row["way"] == "plain"
    assert results["settings"]["seeds"] == [0, 1]
    assert results["target"]["path"] == results["settings"]["base"]["target"]["path"]


def test_a_run_that_fails_is_recorded_with_its_message_and_ends_nothing(study):
    _, out, done = study
    failed = done.json["failed"]
    assert [(each["way"], each["seed"]) for each in failed] == [("mad", 0), ("mad", 1)]
    assert all("loss is nan" in each["message"] for each in failed)
    assert any("mad, seed 0 failed: target: the loss is nan" in warning for warning in done.json["warnings"])
    assert "loss is nan" in (out / "trials" / "mad-seed-0" / "run.log").read_text()


def test_the_tables_are_of_the_rows(study):
    _, out, done = study
    found, rows = done.json["frontier"], done.json["rows"]
    held = [row for row in rows if row["setting"] == "strength 50"]
    (line,) = [line for line in found["pareto"] if line["setting"] == "strength 50"]
    assert_close(line["gain"], sum(row["target_before"] - row["target_after"] for row in held) / 2)
    assert_close(line["forgetting"], sum(row["source_after"] - row["source_before"] for row in held) / 2)
    assert {line["way"] for line in found["pareto"]} == {"plain", "early-stopping", "held"}
    early = [line["setting"] for line in found["pareto"] if line["way"] == "early-stopping"]
    assert sorted(early) == ["step 1", "step 2", "step 3"]  # step 4 is the run itself
    assert {line["way"] for line in found["matched_learning"]} == {"plain", "early-stopping", "held"}
    assert [line["way"] for line in found["costs"]] == ["plain", "held"]
    assert found["hypervolume"]["reference"]["gain"] == 0
    assert found["recommendation"].endswith(".")
    assert "Plotly" in (out / "report.html").read_text()


def test_runs_share_the_anchors_that_they_have_in_common(study):
    _, out, _ = study
    assert len([path for path in (out / "anchors").iterdir() if path.is_dir()]) == 2  # one for each seed


def test_a_run_is_what_tune_makes_of_its_recipe(study, place, tmp_path):
    _, out, done = study
    folder = out / "trials" / "held-strength-0.5-seed-1"
    alone = succeeded("tune", folder / "recipe.resolved.yaml", "--out", tmp_path / "alone", "--json").json["rows"][0]
    (row,) = [row for row in done.json["rows"] if row["run"] == folder.name]
    for key in ("source_before", "source_after", "target_after", "predicted_forgetting"):
        assert_close(row[key], alone[key])
    assert not (folder / "checkpoints").exists()
    assert not (folder / "report.html").exists()
    PeftModel.from_pretrained(load_model(str(place.model), "float32"), folder / "adapter")


def test_the_same_command_runs_nothing_again(study):
    recipe, out, done = study
    before = stamps(out)
    again = succeeded("frontier", recipe, "--out", out, "--json")
    assert again.json["rows"] == done.json["rows"]
    assert stamps(out) == before
    assert "Checking" not in again.err


def test_failed_runs_are_done_again_where_asked(study):
    recipe, out, done = study
    before = {path: stamp for path, stamp in stamps(out).items() if "mad" not in str(path)}
    again = succeeded("frontier", recipe, "--out", out, "--retry-failed", "--processes", 1, "--json")
    assert [each["run"] for each in again.json["failed"]] == [each["run"] for each in done.json["failed"]]
    assert {path: stamp for path, stamp in stamps(out).items() if "mad" not in str(path)} == before


def test_another_recipe_is_refused_by_the_keys_that_differ(study):
    recipe, out, _ = study
    before = (out / "results.json").read_bytes()
    refused(
        "frontier", recipe, "--out", out, "--set", "base.rank=4", "--seeds", 3,
        says=["other settings", "base.rank was 8, now 4", "seeds was [0, 1], now [0, 1, 2]", "another --out"],
    )  # fmt: skip
    assert (out / "results.json").read_bytes() == before


@pytest.fixture
def checked_here(monkeypatch):
    """The check in this process, which has loaded everything."""
    monkeypatch.setattr("holdfast.frontier.frontier.checked", lambda pool, recipes: trial.check(recipes))


def test_other_data_is_refused(study, place, checked_here):
    recipe, out, _ = study
    before = place.target.read_text()
    place.target.write_text(before + '{"prompt": "9 plus 9?", "completion": "It is 18."}\n')
    try:
        refused("frontier", recipe, "--out", out, "--retry-failed", says=["the target data is not what the study"])
    finally:
        place.target.write_text(before)


def test_a_table_for_people_and_a_plan(study):
    recipe, out, _ = study
    done = succeeded("frontier", recipe, "--out", out)
    assert "strength 50" in done.out
    assert "forgotten at equal learning" in done.out
    plan = succeeded("frontier", recipe, "--out", out, "--plan", "--json").json
    assert [(row["way"], row["done"], row["failed"]) for row in plan["rows"]] == [
        ("plain", 2, 0), ("held", 2, 0), ("held", 2, 0), ("mad", 0, 2),
    ]  # fmt: skip


def test_a_plan_without_a_recipe_makes_nothing(place, tmp_path):
    given = ("--model", place.model, "--target", place.target, "--source", place.source)
    done = succeeded("frontier", *given, "--out", tmp_path / "out", "--plan")
    assert "kronecker+distill-self" in done.out
    assert not (tmp_path / "out").exists()


class Here:
    """A pool of no processes: jobs are done where they are asked for."""

    def __init__(self, count, devices):
        self.jobs = []

    busy = property(lambda self: [key for _, key in self.jobs])
    free = property(lambda self: 1 - len(self.jobs))

    def send(self, job, key):
        self.jobs.append((job, key))

    def events(self, timeout):
        while self.jobs:
            job, key = self.jobs.pop()
            with contextlib.redirect_stdout(io.StringIO()):
                row = trial.run(job, lambda *_: None)
            yield Event("done", key, row)

    def close(self):
        self.jobs.clear()


def test_a_search_begins_in_the_middle_and_suggests_the_rest(place, tmp_path, checked_here, monkeypatch):
    monkeypatch.setattr("holdfast.frontier.frontier.Pool", Here)
    ways = ["plain", {"name": "held", "curvature": "identity", "strength": {"low": 0.01, "high": 10}}]
    recipe = write(place, tmp_path / "frontier.yaml", ways, along=0, trials=5)
    done = succeeded("frontier", recipe, "--out", tmp_path / "out", "--json")
    tried = {row["setting"]: row["strength"] for row in done.json["rows"] if row["way"] == "held"}
    assert list(tried.values()) == sorted(tried.values())
    assert {0.0316, 0.316, 3.16} < set(tried.values())
    (suggested,) = set(tried.values()) - {0.0316, 0.316, 3.16}
    assert 0.01 <= suggested <= 10
    seeds = Counter((row["way"], row["setting"]) for row in done.json["rows"])
    assert set(seeds.values()) == {2}  # every setting with every seed
    grown = succeeded("frontier", recipe, "--out", tmp_path / "out", "--trials", 6, "--json")
    assert len(grown.json["rows"]) == 12
    assert all(row in grown.json["rows"] for row in done.json["rows"])


BAD = {
    "no model": ((), ["no model was named"]),
    "a misspelt way": (("--way", "l3"), ["no way is called 'l3'"]),
    "a storage that is none": (("--storage", "nonsense"), ["is no URL of a database"]),
    "no such data": (("--target", "missing.jsonl"), ["missing.jsonl"]),
    "no such curvature": (
        ("--set", "ways=[{name: a, curvature: kroneker, strength: [1]}]"),
        ["kroneker", "kronecker"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_run_is_refused_and_leaves_nothing(case, place, tmp_path, checked_here):
    more, says = BAD[case]
    given = () if case == "no model" else ("--model", place.model, "--target", place.target, "--source", place.source)
    refused("frontier", *given, "--way", "plain", "--length", 48, *more, "--out", tmp_path / "new" / "out", says=says)
    assert not (tmp_path / "new").exists()


def start(recipe, out, *more):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "holdfast", "frontier", recipe, "--out", out, "--processes", 1, *more]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(found, process, seconds=120):
    """What `found` returns as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def checkpointed(run):
    """Whether a run has a whole checkpoint and is under way."""
    return bool(checkpoints.whole(run))


def workers(process):
    """The processes that do the runs: those that Python's multiprocessing spawned."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "spawn_main" in " ".join(child.cmdline())]


def trials(out):
    """What the study's storage holds."""
    import optuna

    return optuna.load_study(study_name="frontier", storage=f"sqlite:///{out}/study.db").trials


def is_at_a_run(process, out):
    """Whether a process has claimed a run."""
    held = [trial.user_attrs.get("place", {}).get("pid") for trial in trials(out) if trial.state.name == "RUNNING"]
    return process.pid in held


def test_killed_and_joined_a_study_does_every_run_once(place, tmp_path):
    """A worker is killed, then its parent; two processes go on from there, of which one is interrupted."""
    ways = ["plain", {"name": "held", "curvature": "identity", "strength": [0.5, 5, 50]}]
    recipe = write(place, tmp_path / "frontier.yaml", ways, steps=40, along=0, seeds=1, training={"save_steps": 5})
    out = tmp_path / "out"
    of_worker, done, of_parent = (
        out / "trials" / name for name in ("plain-seed-0", "held-strength-0.5-seed-0", "held-strength-5-seed-0")
    )

    first = start(recipe, out)
    until(lambda: checkpointed(of_worker), first)
    workers(first)[0].kill()
    until(lambda: checkpointed(of_parent), first)  # the runs after it, while the killed one waits again
    orphans = workers(first)
    first.kill()
    first.communicate()
    gone, alive = psutil.wait_procs(orphans, timeout=20)
    assert (len(gone), alive) == (1, [])  # it had nobody left to tell
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert done / "results.json" in before

    second, third = start(recipe, out), start(recipe, out)
    until(lambda: is_at_a_run(third, out), third)
    third.send_signal(signal.SIGINT)
    _, said = third.communicate(timeout=120)
    assert third.returncode == 128 + signal.SIGINT
    assert "the same command goes on from there" in said
    _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said

    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before
    for run_folder in (of_worker, of_parent):
        assert "going on from step" in (run_folder / "run.log").read_text()
    results = json.loads((out / "results.json").read_text())
    assert len({row["run"] for row in results["rows"]}) == len(results["rows"]) == 4
    assert [warning for warning in results["warnings"] if "still" in warning] == []
    states = Counter(trial.state.name for trial in trials(out))
    assert states == {"COMPLETE": 4, "FAIL": 3}  # the worker's, the parent's, the interrupted one


def test_an_interrupted_study_says_how_to_go_on(place, tmp_path, monkeypatch):
    recipe = write(place, tmp_path / "frontier.yaml", ["plain"], seeds=1)
    monkeypatch.setattr("holdfast.frontier.frontier.checked", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    done = run("frontier", recipe, "--out", tmp_path / "out")
    assert done.status == 128 + signal.SIGINT
    assert "the same command goes on from there" in done.err
    assert not Path(tmp_path / "out" / "results.json").exists()
