"""`holdfast tune --budget`: what a run leaves, that it resumes, and what makes no budget."""

import json
import math

import pytest
import yaml
from cli_runs import LENGTH, SMALL_SELF, anchor, files_in, out, place, refused, run, succeeded, tune  # noqa: F401
from test_cli import _stop_at

SIDES = ("--source", "SOURCE", "--set", "held_out=0.3", "--set", "steering=0.3")
MEASURED = ("--curvature", "kronecker", "--budget", 2, "--learning-rate", 0.05)


def budgeted(place, folder, *more, steps=12):  # noqa: F811
    """The arguments of a run with the tiny model's own sides."""
    sides = [place.source if part == "SOURCE" else part for part in SIDES]
    return (*tune(place, folder, *sides, *more), "--steps", steps)


def test_a_budget_its_forecast_and_what_was_measured(place, tmp_path):  # noqa: F811
    done = succeeded(*budgeted(place, tmp_path, *MEASURED, "--eval-steps", 4))
    assert "steer the budget" in done.err
    assert "budget 2 nats per item" in done.out
    assert "on data that steered nothing" in done.out
    row = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert (row["budget"], row["budget_unit"], row["steered_by"]) == (2.0, "nats", "measurement")
    assert row["strength"] is None
    assert row["forgetting"] == pytest.approx(row["source_after"] - row["source_before"], abs=1e-9)
    assert 0 < row["forgetting_error"] < 1
    assert [moment["step"] for moment in row["along"]] == [4, 8, 12]
    assert set(row["along"][0]) == {"step", "source", "target"}
    assert row["along"][-1]["target"] == pytest.approx(row["target_after"]) or row["scaled_by"] < 1
    moments = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "penalty", "strength", "predicted_forgetting", "calibrated_forecast"} <= set(moments[-1])
    assert any("target_loss" in moment for moment in moments)
    resolved = yaml.safe_load((tmp_path / "recipe.resolved.yaml").read_text())
    assert resolved["budget"] == ["2"]
    assert "Held to a budget (2 nats per item)" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("budget", "unit", "limit", "words"),
    [
        ("400%", "nats", math.log(5), "400 % of perplexity, 1.61 nats per item"),
        ("loss 50%", "nats", None, "50 % of loss"),
        ("accuracy 60", "points", 60.0, "60 points of accuracy"),
    ],
)
def test_budgets_of_every_kind(place, tmp_path, budget, unit, limit, words):  # noqa: F811
    row = succeeded(*budgeted(place, tmp_path, "--curvature", "kronecker", "--budget", budget, "--json")).json["rows"][
        0
    ]
    assert row["budget_unit"] == unit
    assert row["budget"] == pytest.approx(limit or 0.5 * row["source_before"], rel=0.2)
    assert words in row["budget_words"]


def test_a_budget_alone_distils(place, tmp_path):  # noqa: F811
    sides = (*SMALL_SELF, "--set", "samples=64")
    row = succeeded(*tune(place, tmp_path, *sides, "--budget", 1, "--json")).json["rows"][0]
    assert (row["penalty"], row["budget"]) == ("distill-self", 1.0)
    assert yaml.safe_load((tmp_path / "recipe.resolved.yaml").read_text())["distill"] == 1.0


def test_without_source_the_forecast_steers_and_the_result_says_so(place, anchor, tmp_path):  # noqa: F811
    results = succeeded(*tune(place, tmp_path, "--anchor", anchor, "--budget", 0.1, "--json")).json
    assert results["rows"][0]["steered_by"] == "forecast"
    assert results["rows"][0]["calibrated_forecast"] <= 0.1
    assert any("forecast alone" in warning for warning in results["warnings"])


def test_an_anchor_and_distillation_share_a_budget(place, tmp_path):  # noqa: F811
    row = succeeded(*budgeted(place, tmp_path, *MEASURED, "--distill", 0.5, "--json")).json["rows"][0]
    assert (row["penalty"], row["budget"]) == ("kronecker+distill-source", 2.0)


def test_a_budget_for_each_anchor(place, anchor, tmp_path):  # noqa: F811
    asked = tune(place, tmp_path, "--anchor", anchor, "--anchor", anchor, "--budget", 0.1, "--budget", 0.05, "--json")
    row = succeeded(*asked).json["rows"][0]
    assert (row["budget_words"], row["steered_by"]) == ("0.1 nats per item, 0.05 nats per item", "forecast")


def test_resumed_budgets_end_as_uninterrupted_ones(place, tmp_path, monkeypatch):  # noqa: F811
    held = (*MEASURED, "--distill", 1, "--eval-steps", 2, "--save-steps", 1, "--json")
    reference = succeeded(*budgeted(place, tmp_path / "whole", *held, steps=6)).json["rows"][0]
    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        _stop_at(patched, 5, "training")
        assert run(*budgeted(place, folder, *held, steps=6)).status == 130
    again = succeeded(*budgeted(place, folder, *held, "--resume", steps=6)).json["rows"][0]
    for key in ("source_after", "target_after", "calibrated_forecast", "final_strength", "scaled_by", "along"):
        assert again[key] == reference[key]
    mine, theirs = files_in(folder), files_in(tmp_path / "whole")
    assert mine["adapter/adapter_model.safetensors"] == theirs["adapter/adapter_model.safetensors"]


REFUSED = {
    "negative": (("--curvature", "kronecker", "--budget=-0.1"), ["budget of -0.1", "above 0"]),
    "words": (("--curvature", "kronecker", "--budget", "a little"), ["'a little'", "nats per source item"]),
    "with a strength": (("--curvature", "kronecker", "--budget", 1, "--strength", 2), ["leave one out"]),
    "with a weight": (("--distill", 0.3, "--budget", 1), ["distill=0.3", "leave one out"]),
    "with together": (
        ("--curvature", "kronecker", "--distill", 1, "--budget", 1, "--set", "together=2"), ["together=2", "leave one"]
    ),
    "too many": (("--curvature", "kronecker", "--budget", 1, "--budget", 2), ["2 budgets for 1 anchors"]),
    "no forecast": (("--curvature", "identity", "--budget", 1), ["forecasts no forgetting"]),
    "below the noise": (
        ("--curvature", "kronecker", "--budget", 0.001), ["is below what", "nats or more", "give at least"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_budget_is_refused(place, out, case):  # noqa: F811
    options, says = REFUSED[case]
    refused(*budgeted(place, out, *options), says=says)


def test_what_steers_needs_a_budget(place, out):  # noqa: F811
    refused(*tune(place, out, "--set", "steering=0.2"), says=["steering=0.2 is of a budget", "pass --budget"])
    refused(*tune(place, out, "--budget", "accuracy 1", "--set", "distill=0"), says=["source"])
