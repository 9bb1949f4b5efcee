"""Runs in a storage that processes share: claimed once, done once, and none lost when a process dies."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import optuna
from frontier_claims import ROW, joined, recipe

from holdfast.errors import HoldfastError
from holdfast.frontier import place
from holdfast.frontier import queue as queues
from holdfast.frontier import study as studies
from holdfast.frontier.ledger import combination_of
from holdfast.frontier.plan import planned
from holdfast.frontier.run import Run

RANGED = {"ways": ["plain", {"name": "a", "distill": {"low": 0.1, "high": 10}}], "seeds": 2, "trials": 7}


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def together(url, count):
    """Several processes that claim all runs of one study at once: what each got."""
    begin, here = str(time.time() + 4), Path(__file__).parent
    ran = [
        subprocess.Popen(
            [sys.executable, "frontier_claims.py", url, begin], cwd=here, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in ran]


def check_each_once(url, got):
    """Nothing was run twice, and everything once."""
    keys = Counter(key for mine in got for key in mine)
    assert len(keys) == 10
    assert set(keys.values()) == {1}
    study = optuna.load_study(study_name="frontier", storage=url)
    assert Counter(trial.state.name for trial in study.trials) == {"COMPLETE": 10}
    assert [trial.values for trial in study.trials] == [[4.0, pytest.approx(0.2)]] * 10


def test_processes_that_start_at_once_make_one_plan_and_run_nothing_twice(url):
    check_each_once(url, together(url, 3))


def claimed(queue):
    claim = queue.claim()
    assert claim is not None
    return claim


def test_a_run_is_done_with_its_row_and_never_claimed_again(url):
    queue = joined(url, recipe())
    first = claimed(queue)
    queue.done(first, ROW)
    others = []
    while claim := queue.claim():
        others.append(claim.combination)
        queue.done(claim, ROW)
    assert first.combination not in others
    assert len(set(others)) == 9
    assert [row for _, row in queue.ledger.rows()] == [ROW] * 10
    queue.add(combination for combination, _ in queue.ledger.rows())
    assert queue.claim() is None


def test_a_loss_that_is_not_finite_is_a_failure(url):
    queue = joined(url, recipe())
    queue.done(claimed(queue), {**ROW, "source_after": float("nan")})
    (failure,) = queue.ledger.failures()
    assert "nan" in failure.user_attrs["error"]
    assert queue.ledger.rows() == []


def test_a_failed_run_stays_failed_until_it_is_asked_for_again(url):
    queue = joined(url, recipe())
    claim = claimed(queue)
    queue.end(claim, {"error": "the training loss is nan"})
    queue.add([claim.combination])
    assert [combination_of(trial) for trial in queue.ledger.failures()] == [claim.combination]
    assert len(queue.ledger.trials("WAITING")) == 9
    queue.retry()
    assert queue.ledger.failures() == []
    assert claim.combination in [combination_of(trial) for trial in queue.ledger.trials("WAITING")]


def test_a_killed_run_waits_again_and_is_given_up_after_too_many_deaths(url):
    queue = joined(url, recipe(ways=["plain"], seeds=1))
    for death in range(queues.DEATHS):
        waits = queue.died(claimed(queue), "ended by SIGKILL")
        assert waits == (death + 1 < queues.DEATHS)
    (failure,) = queue.ledger.failures()
    assert "died 3 times, at last ended by SIGKILL" in failure.user_attrs["error"]
    assert queue.claim() is None


def test_an_interrupted_run_waits_again_however_often(url):
    queue = joined(url, recipe(ways=["plain"], seeds=1))
    for _ in range(2 * queues.DEATHS):
        queue.release(claimed(queue))
    assert claimed(queue).combination.setting.way == "plain"


def test_the_run_of_a_process_that_is_gone_is_taken_up_at_once(url):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    dead = {**place.signature(), "pid": gone.pid}
    gone.wait()
    theirs = joined(url, recipe(ways=["plain"], seeds=1))
    theirs.signature = dead
    held = claimed(theirs)
    ours = joined(url, recipe(ways=["plain"], seeds=1))
    assert ours.claim() is None
    ours.recover()
    assert claimed(ours).combination == held.combination
    theirs.done(held, ROW)  # it was only slow: its end comes too late, and is no second one
    assert ours.ledger.rows() == []


def test_the_run_of_a_living_process_and_of_another_machine_is_left_to_it(url):
    assert not place.is_gone(place.signature())
    assert not place.is_gone({**place.signature(), "machine": "another", "pid": 2**22 + 1})
    assert place.is_gone({**place.signature(), "started": 1.0})  # another process with that number
    assert not place.is_gone({})
    theirs, ours = (joined(url, recipe(ways=["plain"], seeds=1)) for _ in range(2))
    claimed(theirs)
    ours.recover()
    assert ours.claim() is None


def test_a_run_without_a_sign_of_life_is_taken_up_after_a_while(url):
    theirs, ours = (joined(url, recipe(ways=["plain"], seeds=1)) for _ in range(2))
    theirs.signature = {**theirs.signature, "machine": "another"}
    held = claimed(theirs)
    ours.storage.grace_period = 1
    ours.recover()
    assert ours.claim() is None
    time.sleep(2.5)
    ours.recover()
    assert claimed(ours).combination == held.combination
    assert ours.ledger.failures() == []


def test_a_sign_of_life_keeps_a_run(url, monkeypatch):
    monkeypatch.setattr(queues, "HEARTBEAT", 0)
    theirs, ours = (joined(url, recipe(ways=["plain"], seeds=1)) for _ in range(2))
    theirs.signature = {**theirs.signature, "machine": "another"}
    claimed(theirs)
    ours.storage.grace_period = 1
    time.sleep(2.5)
    theirs.beat()
    ours.recover()
    assert ours.claim() is None


def test_what_was_planned_twice_is_run_once(url):
    queue = joined(url, recipe(ways=["plain"], seeds=1))
    (waiting,) = queue.ledger.trials("WAITING")
    queue._add(combination_of(waiting))  # another process, which had looked before
    queue.done(claimed(queue), ROW)
    assert queue.claim() is None
    assert len(queue.ledger.rows()) == 1


def test_where_every_run_failed_the_message_is_theirs(url, tmp_path):
    settings = recipe(ways=["plain"], seeds=1)
    queue = joined(url, settings)
    queue.end(claimed(queue), {"error": "the loss is nan\n  remedy: lower the learning rate"})
    with pytest.raises(HoldfastError, match="no run could be done; plain, seed 0 failed: the loss is nan"):
        Run(settings, tmp_path, queue, None, None).written(report=True)


def test_a_search_suggests_new_settings_within_their_range(url):
    settings = recipe(**RANGED)
    queue = joined(url, settings)
    while claim := queue.claim():
        queue.done(claim, ROW)
    found = []
    for _ in range(3):
        claim = queue.propose(lambda number: optuna.samplers.TPESampler(seed=number), 0)
        found.append(claim.combination.setting)
        queue.done(claim, ROW)
    assert len(set(found)) == 3
    assert all(setting.way == "a" and 0.1 <= dict(setting.values)["distill"] <= 10 for setting in found)
    assert {trial.user_attrs["seed"] for trial in queue.study.trials[-3:]} == {0}
    params = [trial.params for trial in queue.study.trials if trial.user_attrs["way"] == "a"]
    assert all(set(each) == {"way", "a: distill"} for each in params)  # the sampler learns from all of them


def test_a_plan_tells_what_became_of_the_runs(url, tmp_path):
    settings = recipe(storage=url)
    queue = joined(url, settings)
    queue.done(claimed(queue), ROW)
    queue.end(claimed(queue), {"error": "no"})
    claimed(queue)
    found = planned(settings, tmp_path)
    sums = {state: sum(row[state] for row in found["rows"]) for state in ("done", "failed", "running", "waiting")}
    assert sums == {"done": 1, "failed": 1, "running": 1, "waiting": 7}
    assert found["seconds_per_run"] >= 0


def test_a_study_made_with_other_settings_is_refused_by_the_keys_that_differ(url):
    queue = joined(url, recipe())
    before = [trial.state for trial in queue.study.trials]
    with pytest.raises(HoldfastError) as caught:
        joined(url, recipe(base={"model": "other", "target": "t", "source": "s", "rank": 4}, seeds=3))
    message = str(caught.value)
    assert "base.model was m, now other" in message
    assert "base.rank was 8, now 4" in message
    assert "seeds was [0, 1], now [0, 1, 2]" in message
    assert [trial.state for trial in queue.study.trials] == before
    joined(url, recipe(processes=3, keep=0.5))  # these change no run


def test_other_data_is_refused(url):
    queue = joined(url, recipe())
    sides = {"target": {"rows": "abc", "about": {"description": "36 rows"}, "sequences": 4}}
    queue.study.set_user_attr("sides", sides)
    studies.check_sides(queue.study, url, sides)
    with pytest.raises(HoldfastError, match="the target data is not what the study"):
        studies.check_sides(queue.study, url, {"target": {**sides["target"], "rows": "abd"}})


def test_a_study_of_another_program_is_left_alone(url, monkeypatch):
    monkeypatch.setattr(studies, "WAIT", 0.5)
    other = optuna.create_study(storage=url, study_name="frontier", directions=["minimize"] * 2)
    other.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    with pytest.raises(HoldfastError, match="not one of holdfast frontier"):
        joined(url, recipe())
    joined(url, recipe(study="mine"))


def test_a_study_whose_maker_died_over_it_is_finished_by_the_next(url, monkeypatch):
    monkeypatch.setattr(studies, "WAIT", 0.5)
    queue = joined(url, recipe())
    study = optuna.create_study(storage=url, study_name="half", directions=["minimize"] * 2)
    half = queues.Queue(study, queue.storage, url, queue.space)
    half.add([combination_of(trial) for trial in queue.ledger.trials()[:4]])
    found = joined(url, recipe(study="half"))
    assert len(found.ledger.trials("WAITING")) == 10
    assert studies.find(found.storage, url, recipe(study="half")) is not None
    assert os.path.exists(url.removeprefix("sqlite:///"))
