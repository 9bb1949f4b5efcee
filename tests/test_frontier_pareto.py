"""The Pareto set, its intervals and areas, against slow twins."""

import random
import statistics

import numpy as np
import pytest
from torch.testing import assert_close

from holdfast.frontier import pareto
from holdfast.frontier.intervals import interval
from holdfast.frontier.points import Setting, settings, stopped


def made(seed, count=9, seeds=3, noise=0.02):
    """Settings at random, each with some seeds."""
    draw = random.Random(seed)
    found = []
    for index in range(count):
        gain, lost = draw.uniform(0.2, 2), draw.uniform(0, 1)
        points = {s: (gain + draw.gauss(0, noise), lost + draw.gauss(0, noise)) for s in range(seeds)}
        found.append(Setting(f"way {index % 3}", f"strength {index}", points))
    return found


def test_the_interval_is_students():
    found = interval([0.31, 0.28, 0.34])
    half = 4.302652729911275 * statistics.stdev([0.31, 0.28, 0.34]) / 3**0.5  # the 97.5 % quantile at 2 degrees
    assert_close((found.mean, found.low, found.high), (0.31, 0.31 - half, 0.31 + half))
    assert found.seeds == 3
    one = interval([0.3])
    assert (one.mean, one.low, one.high, one.seeds) == (0.3, None, None, 1)
    with pytest.raises(statistics.StatisticsError):
        interval([])


def test_the_interval_covers_as_often_as_it_says():
    draw = random.Random(0)
    drawn = [interval(draw.gauss(0, 1) for _ in range(4)) for _ in range(4000)]
    assert statistics.fmean(each.low < 0 < each.high for each in drawn) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seed", range(10))
def test_the_front_is_what_no_other_dominates(seed):
    found = made(seed)
    means = [tuple(map(statistics.fmean, zip(*s.points.values(), strict=True))) for s in found]
    kept = pareto.front(found)
    for mine, (gain, lost) in zip(found, means, strict=True):
        better = [g >= gain and f <= lost and (g, f) != (gain, lost) for g, f in means]
        assert (mine in kept) == (not any(better))


@pytest.mark.parametrize("seed", range(10))
def test_the_front_does_not_depend_on_order_or_scale(seed):
    found = made(seed)
    scaled = [Setting(s.way, s.words, {k: (3 * g, 0.1 * f) for k, (g, f) in s.points.items()}) for s in found[::-1]]
    assert {s.words for s in pareto.front(found)} == {s.words for s in pareto.front(scaled)}


def test_equal_settings_are_both_on_the_front():
    twins = [Setting("a", "", {0: (1.0, 0.1)}), Setting("b", "", {0: (1.0, 0.1)})]
    assert pareto.front(twins) == twins


def test_what_seeds_do_not_tell_apart_is_not_called_beaten():
    best = Setting("a", "", {0: (1.00, 0.10), 1: (1.10, 0.12), 2: (0.95, 0.11)})
    near = Setting("b", "", {0: (0.99, 0.10), 1: (1.11, 0.13), 2: (0.93, 0.11)})
    far = Setting("c", "", {s: (g - 0.2, f + 0.3) for s, (g, f) in best.points.items()})
    status = {row["way"]: row["status"] for row in pareto.table([best, near, far])}
    assert status == {"a": pareto.ON, "b": pareto.UNSURE, "c": pareto.BEATEN}
    assert not pareto.surely_beats(best, Setting("d", "", {0: (0.1, 0.9)}))  # one seed in common says nothing


def test_differences_are_taken_seed_by_seed():
    """Seeds spread far more than two ways differ: paired, the difference is sure."""
    one = Setting("a", "", {seed: (float(seed), 1.0 + seed) for seed in range(4)})
    other = Setting("b", "", {seed: (seed - 0.1 - 0.001 * seed, 1.1 + seed + 0.001 * seed) for seed in range(4)})
    assert pareto.surely_beats(one, other)
    assert not pareto.surely_beats(other, one)


def test_a_table_states_means_intervals_and_seeds():
    (row,) = pareto.table([Setting("a", "strength 2", {0: (1.0, 0.1), 1: (1.2, 0.1)})])
    assert_close((row["gain"], row["forgetting"], row["forgetting_low"]), (1.1, 0.1, 0.1))
    assert (row["way"], row["setting"], row["seeds"]) == ("a", "strength 2", 2)
    (row,) = pareto.table([Setting("a", "", {0: (1.0, 0.1)})])
    assert (row["gain_low"], row["seeds"]) == (None, 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_area_is_the_counted_one(seed):
    draw = random.Random(seed)
    points = [(draw.randint(-2, 20), draw.randint(-3, 22)) for _ in range(draw.randint(0, 10))]
    cells = sum(any(g >= x + 1 and f <= y for g, f in points) for x in range(0, 20) for y in range(-3, 18))
    assert pareto.area(points, (0, 18)) == cells


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_optunas(seed):
    compute = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    points = [p for s in made(seed) for p in s.points.values() if p[1] < 0.9]
    theirs = compute(np.array([[-g, f] for g, f in points]), np.array([0.0, 0.9]))
    assert_close(pareto.area(points, (0.0, 0.9)), float(theirs), rtol=1e-9, atol=0)


def test_the_hypervolume_states_its_reference_and_each_ways_part():
    found = made(1)
    told = pareto.hypervolume(found)
    worst = max(f for s in found for _, f in s.points.values())
    assert told["reference"] == {"gain": 0.0, "forgetting": worst}
    slow = [pareto.area([s.points[seed] for s in found], (0.0, worst)) for seed in range(3)]
    assert_close(told["value"], statistics.fmean(slow))
    assert {row["way"] for row in told["per_way"]} == {"way 0", "way 1", "way 2"}
    assert all(row["value"] <= told["value"] + 1e-12 for row in told["per_way"])
    assert told["value_low"] < told["value"] < told["value_high"]
    assert 0 < told["share"] < 1
    alone = [Setting("a", "", {0: (1.0, -0.2)}), Setting("b", "", {0: (0.5, 0.3)})]
    assert_close(pareto.hypervolume(alone)["share"], 1.0)  # a beats b in both: nothing is left to cover


def run(way="plain", setting="", seed=0, **more):
    """A finished run's row."""
    losses = {"source_before": 3.0, "source_after": 3.4, "target_before": 5.0, "target_after": 4.0}
    return {"way": way, "setting": setting, "seed": seed, **losses, **more}


def test_rows_become_settings_over_their_seeds():
    rows = [
        run(),
        run(seed=1, target_after=3.9),
        run("held", "strength 2", source_after=3.1),
        run(seed=2, source_after=None),
    ]
    plain, held = settings(rows)
    assert_close(dict(plain.points), {0: (1.0, 0.4), 1: (1.1, 0.4)})
    assert (held.way, held.words) == ("held", "strength 2")
    assert_close(held.points[0], (1.0, 0.1))


def test_stopping_early_is_read_from_what_runs_measured_along_the_way():
    along = [{"step": 5, "source": 3.1, "target": 4.6}, {"step": 10, "source": 3.3, "target": 4.2}]
    rows = [run(along=along), run(seed=1, along=along[:1]), run("held", "strength 2", along=along), run(seed=2)]
    first, second = stopped(rows, "plain", "early stopping")
    assert (first.way, first.words, second.words) == ("early stopping", "step 5", "step 10")
    assert_close(dict(first.points), {0: (0.4, 0.1), 1: (0.4, 0.1)})
    assert_close(dict(second.points), {0: (0.8, 0.3)})
    ended = run(along=[*along, {"step": 12, "source": 3.4, "target": 4.0}])
    assert [setting.words for setting in stopped([ended], "plain", "early stopping")] == ["step 5", "step 10"]
