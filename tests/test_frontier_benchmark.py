"""The frontier benchmark's arithmetic: curves, matched gain, rows and the record that a killed run goes on from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from holdfast.comparison import ComparisonSettings, Hold, Workload
from holdfast.frontier import matching
from holdfast.recipe import TrainingSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import frontier
import frontier_cases
import matched


def run(gain: float, forgotten: float, seed: int = 0, step: float = 0.1, **more: object) -> dict:
    """A run's row, with losses as given."""
    losses = {"source_before": 3.0, "source_after": 3.0 + forgotten, "target_before": 5.0, "target_after": 5.0 - gain}
    return {**losses, "seed": seed, "cpu_seconds_per_step": step, "anchor_seconds": 1.0, "along": [], **more}


PLAIN = run(2.0, 1.0)


def test_a_curve_drops_what_another_point_beats() -> None:
    points = [(1.0, 1.0), (0.9, 0.2), (0.95, 0.1), (0.95, 0.3), (0.8, 0.05)]
    assert matching.curve(points) == [(0.8, 0.05), (0.95, 0.1), (1.0, 1.0)]


def test_forgetting_at_a_gain_between_two_settings() -> None:
    points = [(0.9, 0.05), (0.96, 0.4), (1.0, 1.0)]
    assert_close(matching.at_gain(points, 0.92), (0.1, True))
    assert_close(matching.at_gain(points, 0.98), (0.4**0.5, True))
    assert_close(matching.at_gain(points, 0.96), (0.4, True))


def test_where_nothing_was_forgotten_the_line_is_straight() -> None:
    assert_close(matching.at_gain([(0.9, -0.1), (1.0, 0.3)], 0.95), (0.1, True))


def test_forgetting_at_a_gain_that_every_setting_exceeds_is_a_bound() -> None:
    assert matching.at_gain([(0.97, 0.3), (1.0, 1.0)], 0.95) == (0.3, False)


def test_a_gain_that_no_setting_keeps_has_no_forgetting() -> None:
    assert matching.at_gain([(0.8, 0.1), (0.9, 0.3)], 0.95) is None
    assert matching.at_gain([], 0.95) is None


def test_matched_is_the_median_over_seeds_with_its_range() -> None:
    seeds = [[(0.9, least), (1.0, 1.0)] for least in (0.04, 0.25, 0.09)]
    found = matched.matched(seeds, 0.95)
    assert found == {"forgetting_of_plain": 0.3, "low": 0.2, "high": 0.5, "between_settings": True}
    assert matched.matched([*seeds, [(0.8, 0.1)]], 0.95) == {"forgetting_of_plain": None}


def test_a_point_is_the_share_of_the_plain_run() -> None:
    assert_close(matched.point(run(1.8, 0.25), PLAIN), (0.9, 0.25))


def test_the_way_of_a_run_starts_untrained() -> None:
    row = run(2.0, 1.0, along=[{"step": 5, "source_test": 3.5, "target_test": 4.0}])
    points = [(each["step"], *matched.point(each, PLAIN)) for each in matched.along(row)]
    assert_close(points, [(0, 0.0, 0.0), (5, 0.5, 0.5)])
    assert matched.along(PLAIN) == []


def test_a_method_that_ends_in_the_plain_run_has_it_on_its_curve() -> None:
    assert matched.points_of([run(1.8, 0.2)], PLAIN, limit=True)[-1] == matched.PLAIN
    assert matched.PLAIN not in matched.points_of([run(1.8, 0.2)], PLAIN, limit=False)


def test_a_summary_takes_each_seed_against_its_own_plain_run() -> None:
    plain = {0: PLAIN, 1: run(4.0, 2.0, seed=1, step=0.2)}
    rows = [run(1.8, 0.2, step=0.11), run(3.6, 0.4, seed=1, step=0.26)]
    found = matched.summary("kronecker", rows, plain, limit=True)
    assert_close(found["step_ratio"], 1.2)
    assert found["seeds"] == 2
    assert_close(found["at_95"]["forgetting_of_plain"], round(0.2**0.5, 4))
    assert_close(found["at_90"], {"forgetting_of_plain": 0.2, "low": 0.2, "high": 0.2, "between_settings": True})


def test_result_rows_carry_shares_and_cost() -> None:
    method = frontier_cases.Method("early stopping", [Hold()], limit=False)
    row = run(1.8, 0.25, step=0.12, along=[{"step": 5, "source_test": 3.5, "target_test": 4.0}], hold={})
    (found,) = frontier.result_rows(method, [row], {0: PLAIN})
    assert (found["case"], found["gain_kept"], found["forgetting_of_plain"]) == ("early stopping", 0.9, 0.25)
    assert_close((found["ms"], found["ratio"]), (120.0, 1.2))
    assert found["along"][1] == {"step": 5, "gain_kept": 0.5, "forgetting_of_plain": 0.5}
    json.dumps(found)


@pytest.fixture
def work() -> Workload:
    rows = [{"input_ids": torch.arange(4)}]
    return Workload(rows, rows, {"source_test": rows, "target_test": rows})


def test_a_killed_run_goes_on_from_its_record(tmp_path: Path, work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ComparisonSettings(model="m", training=TrainingSettings(steps=2))
    jobs = [("plain", Hold(), 0), ("replay", Hold(replay=0.1), 0), ("replay", Hold(replay=0.1), 1)]
    ran: list[tuple[Hold, int]] = []

    def pretend(common, work, jobs, *, on_step, on_row, processes):
        for place, (hold, seed) in enumerate(jobs):
            ran.append((hold, seed))
            on_row(place, run(2.0, hold.replay, seed=seed, strength=hold.replay, hold={}))

    monkeypatch.setattr(frontier.workers, "run", pretend)
    record = tmp_path / "frontier.jsonl"
    frontier.run(common, work, jobs[:2], record, None)
    with record.open("a") as file:
        file.write('{"key": "cut o')
    rows = frontier.run(common, work, jobs, record, None)
    assert ran == [(hold, seed) for _, hold, seed in jobs]  # each once
    assert [(row["seed"], round(matched.forgetting(row), 3)) for row in rows] == [(0, 0.0), (0, 0.1), (1, 0.1)]
    assert len(record.read_text().splitlines()) == 3
    frontier.run(common.model_copy(update={"rank": 4}), work, jobs[:1], record, None)
    assert len(ran) == 4  # other settings: another run


def test_every_method_is_named_once_and_no_setting_twice() -> None:
    methods = frontier_cases.methods(100)
    names = [method.name for method in methods]
    settings = [hold.model_dump_json() for method in methods for hold in method.holds]
    assert len(set(names)) == len(names)
    assert len(set(settings)) == len(settings)
    assert set(frontier.GSM8K) <= set(names)
