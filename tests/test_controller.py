"""The controller's laws, on a plant that is known: gradient descent on a target loss against a quadratic price."""

import json
import math
import random
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from holdfast.budgets.controller import AIM, RELAXED, SLACK, Controller
from holdfast.errors import HoldfastError


class Plant:
    """Adam-free descent on 1/2 |w - goal|^2 + strength * f(w), f = scale/2 w^2, with a rate that falls as a cosine.

    The forecast is `seen` of the truth, and grows worse as the run goes on: `fading`.
    """

    def __init__(self, goal=2.0, price=1.0, seen=0.3, fading=1.0, steps=200, rate=0.2):
        self.goal, self.price, self.seen, self.fading, self.steps, self.rate = goal, price, seen, fading, steps, rate
        self.w, self.truths, self.strengths = 0.0, [], []

    def truth(self):
        return self.price / 2 * self.w**2

    def forecast(self, step):
        return self.truth() * self.seen * self.fading ** (step / self.steps)

    def run(self, controller, *, looks=16, until=None, begin=0):
        for step in range(begin, until or self.steps):
            forecast = self.forecast(step)
            if looks and step and step % (self.steps // looks) == 0:
                controller.calibrate(forecast, self.truth())
            strength = controller.strength(forecast)
            pull = self.w - self.goal + strength * self.seen * self.price * self.w
            # An implicit step: stable whatever the strength, as Adam is.
            rate = self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2
            self.w -= rate * pull / (1 + rate * strength * self.seen * self.price)
            self.truths.append(self.truth())
            self.strengths.append(strength)
        return self


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("price", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("fading", [1.0, 0.3])
@pytest.mark.parametrize("steps", [100, 400, 2000])
def test_what_binds_ends_at_the_budget(limit, price, fading, steps):
    plant = Plant(price=price, fading=fading, steps=steps).run(Controller(limit, steps))
    free = price / 2 * plant.goal**2
    if free > limit:
        assert 0.93 * limit < plant.truths[-1] < 1.05 * limit


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("price", [1.0, 30.0])
@pytest.mark.parametrize("fading", [1.0, 0.3])
@pytest.mark.parametrize("steps", [100, 2000])
def test_it_does_not_swing(limit, price, fading, steps):
    """In its last third the forgetting stays near its goal; where the forecast is steady it comes from one side."""
    plant = Plant(price=price, fading=fading, steps=steps).run(Controller(limit, steps))
    late = [truth / (AIM * limit) for truth in plant.truths[2 * steps // 3 :]]
    assert max(late) - min(late) < 0.12
    if fading == 1:
        assert sum((a - 1) * (b - 1) < 0 for a, b in pairwise(late)) <= 1


def test_a_budget_that_nothing_needs_holds_nothing():
    controller = Controller(10.0, 200)
    plant = Plant().run(controller)
    free = Plant().run(Controller(1e9, 200))
    assert plant.strengths == [0.0] * 200
    assert plant.truths == free.truths
    assert controller.multiplier == 1.0


def test_without_measurements_the_forecast_is_held():
    plant = Plant(seen=0.5).run(Controller(0.1, 200), looks=0)
    assert 0.5 * plant.truths[-1] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("at", [1, 57, 199])
def test_a_resumed_run_goes_on_to_the_bit(at):
    whole = Plant(fading=0.5).run(Controller(0.1, 200))
    first = Controller(0.1, 200)
    plant = Plant(fading=0.5).run(first, until=at)
    second = Controller(0.1, 200)
    second.restore(json.loads(json.dumps(first.state())))
    plant.run(second, begin=at)
    assert plant.truths == whole.truths


def test_a_state_of_another_budget_is_refused():
    with pytest.raises(HoldfastError, match="same budget"):
        Controller(0.1).restore(Controller(0.2).state())


def test_the_correction_is_the_ratio_of_what_was_measured():
    controller = Controller(0.1)
    controller.calibrate(0.01, 0.03)
    assert controller.expected(0.02) == pytest.approx(0.06)
    controller.calibrate(0.01, 0.05)
    assert controller.expected(0.02) == pytest.approx(0.1)


def test_uncertain_measurements_are_averaged():
    """Of noise with a standard error of half the truth, the correction keeps less than a third."""
    draws = random.Random(0)
    controller, found = Controller(0.1), []
    for _ in range(2000):
        controller.calibrate(0.01, draws.gauss(0.03, 0.015), 0.015)
        found.append(controller.correction)
    late = found[100:]
    assert statistics.mean(late) == pytest.approx(3.0, rel=0.05)
    assert statistics.stdev(late) < 0.3 * 3.0


def test_a_single_batch_tells_no_error_and_still_counts():
    controller = Controller(0.1)
    for _ in range(30):
        controller.calibrate(0.01, 0.03, math.inf)
    assert controller.correction == pytest.approx(3.0, rel=0.01)


def test_a_source_that_improved_is_not_held():
    controller = Controller(0.1)
    controller.calibrate(0.05, -0.02)
    assert controller.expected(0.05) == 0.0
    assert controller.strength(0.05) == 0.0


def test_the_wall_is_a_line_through_the_slack_and_the_multiplier():
    controller = Controller(1.0, steps=10**9)
    for forecast, wall in ((AIM * SLACK, 0.0), (AIM, 1.0), (AIM * 2, 3.0)):
        started = replace(controller)
        assert started.strength(forecast) == pytest.approx(RELAXED * wall)
        for _ in range(60):
            last = started.strength(forecast)
        assert last == pytest.approx(wall)


@pytest.mark.parametrize("settings", [{"limit": 0.0}, {"limit": float("nan")}, {"limit": 1.0, "steps": 0}])
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(HoldfastError, match="above 0"):
        Controller(**settings)


@pytest.mark.parametrize("measured", [0.0, -0.02])
def test_what_was_measured_before_the_weights_move_is_forgotten(measured):
    """A measurement of nothing with no error leaves no certainty: the next one counts as the first."""
    controller = Controller(0.1)
    for _ in range(3):
        controller.calibrate(0.00184, measured, 0.0)
        assert controller.expected(0.00184) == 0.0
        controller.restore(json.loads(json.dumps(controller.state())))
    controller.calibrate(0.01, 0.03, 0.005)
    assert controller.expected(0.01) == pytest.approx(0.03)
    controller.calibrate(0.01, 0.0, 0.0)
    controller.calibrate(0.01, 0.03, math.inf)
    assert controller.expected(0.01) == pytest.approx(0.03)
