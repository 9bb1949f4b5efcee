"""Anchors that `holdfast tune` measures itself, several anchors at once, and what makes no sense of both."""

import json

import pytest
import yaml
from cli_runs import LENGTH, SMALL_SELF, anchor, files_in, out, place, refused, run, succeeded, tune  # noqa: F401
from test_cli import _stop_at

LOSSES = ("source_after", "target_after", "predicted_forgetting")


@pytest.fixture(scope="module")
def diagonal(place):  # noqa: F811
    """Another anchor of the same model."""
    folder = place.path / "diagonal"
    succeeded("anchor", "--model", place.model, "--source", place.source, "--curvature", "diagonal", *LENGTH,
              "--out", folder)  # fmt: skip
    return folder


def row_of(place, folder, *more):  # noqa: F811
    """The result row of a short run that measures both sides."""
    return succeeded(*tune(place, folder, "--source", place.source, *more, "--json")).json["rows"][0]


WAYS = {  # options -> what the row calls the penalty
    "weights": (("--curvature", "kronecker"), "kronecker"),
    "sequence": (("--curvature", "diagonal", "--set", "per=sequence"), "diagonal"),
    "adapter": (("--curvature", "diagonal", "--space", "adapter"), "diagonal@adapter"),
    "chained": (("--curvature", "tridiagonal", "--space", "adapter", "--set", "prior=0.1"), "tridiagonal@adapter"),
    "root": (("--curvature", "kronecker", "--space", "adapter", "--set", "form=root"), "kronecker@adapter-root"),
    "dora": (("--curvature", "diagonal", "--space", "adapter", "--method", "dora"), "diagonal@adapter"),
    "frozen": (("--curvature", "kronecker", "--space", "adapter", "--method", "lora-fa"), "kronecker@adapter"),
    "added": (("--anchor", "ANCHOR", "--curvature", "diagonal", "--space", "adapter"), "kronecker+diagonal@adapter"),
    "full": (("--method", "full", "--targets", "q_proj", "--curvature", "eigen"), "eigen"),
    "both": (("--curvature", "kronecker", "--distill", 0.1), "kronecker+distill-source"),
}


@pytest.mark.parametrize("way", WAYS)
def test_anchors_measured_on_the_way(place, anchor, tmp_path, way):  # noqa: F811
    options, penalty = WAYS[way]
    options = [anchor if option == "ANCHOR" else option for option in options]
    done = succeeded(*tune(place, tmp_path, "--source", place.source, *options, "--strength", 3, "--json"))
    (row,) = done.json["rows"]
    assert (row["penalty"], row["strength"]) == (penalty, 3.0)
    assert row["anchor_seconds"] > 0
    assert row["predicted_forgetting"] > 0
    assert "anchor: " in done.err
    resolved = yaml.safe_load((tmp_path / "recipe.resolved.yaml").read_text())
    for key in ("curvature", "space", "method"):
        if f"--{key}" in options:
            assert resolved[key] == options[options.index(f"--{key}") + 1]
    card = (tmp_path / ("model" if way == "full" else "adapter") / "README.md").read_text()
    assert f"the {resolved['curvature']} curvature of the {'adapter' if '@adapter' in penalty else 'weights'}" in card
    assert not (tmp_path / "anchor").exists()


def test_the_identity_needs_no_source(place, tmp_path):  # noqa: F811
    row = succeeded(*tune(place, tmp_path, "--curvature", "identity", "--json")).json["rows"][0]
    assert (row["penalty"], row["predicted_forgetting"]) == ("identity", None)


def test_the_recipe_of_a_run_repeats_it(place, anchor, diagonal, tmp_path):  # noqa: F811
    options = ("--anchor", anchor, "--anchor", diagonal, "--curvature", "kronecker", "--space", "adapter",
               "--anchor-weight", 1, "--anchor-weight", 0.5, "--anchor-weight", 2, "--set", "draws=2")  # fmt: skip
    first = row_of(place, tmp_path / "first", *options)
    again = succeeded("tune", tmp_path / "first" / "recipe.resolved.yaml", "--out", tmp_path / "again", "--json")
    assert again.json["rows"][0]["penalty"] == first["penalty"] == "kronecker+diagonal+kronecker@adapter"
    assert [again.json["rows"][0][key] for key in LOSSES] == [first[key] for key in LOSSES]


def test_the_model_s_own_text_is_distilled_while_the_source_measures(place, tmp_path):  # noqa: F811
    own = ("--distill", 0.3, *SMALL_SELF[2:])
    row = row_of(place, tmp_path / "self", *own, "--set", "distill_from=self")
    assert row["penalty"] == "distill-self"
    other = row_of(place, tmp_path / "source", "--distill", 0.3)
    assert (other["penalty"], other["source_before"]) == ("distill-source", row["source_before"])
    assert other["target_after"] != row["target_after"]
    refused(
        *tune(place, tmp_path / "none", "--set", "distill_from=self"), says=["distill_from=self is of distillation"]
    )


def test_both_ways_under_one_strength(place, tmp_path):  # noqa: F811
    both = ("--curvature", "kronecker", "--set")
    twice = row_of(place, tmp_path / "a", *both, "together=2", "--strength", 1.5, "--distill", 0.1)
    apart = row_of(place, tmp_path / "b", *both, "seed=0", "--strength", 3, "--distill", 0.2)
    once = row_of(place, tmp_path / "c", *both, "together=1", "--strength", 1.5, "--distill", 0.1)
    assert (twice["penalty"], twice["together"]) == ("kronecker+distill-source", 2.0)
    assert [twice[key] for key in LOSSES] == pytest.approx([apart[key] for key in LOSSES], rel=1e-4)
    assert twice["source_after"] != once["source_after"]
    alone = (*tune(place, tmp_path / "d", "--source", place.source), "--curvature", "kronecker", "--set", "together=2")
    refused(*alone, says=["together=2.0", "ask for both"])


def test_several_anchors_add_up(place, anchor, diagonal, tmp_path):  # noqa: F811
    alone = row_of(place, tmp_path / "alone", "--anchor", anchor, "--strength", 2)
    twice = row_of(place, tmp_path / "twice", "--anchor", anchor, "--anchor", anchor, "--strength", 1)
    weights = ("--anchor-weight", 2, "--anchor-weight", 0)
    weighted = row_of(place, tmp_path / "weighted", "--anchor", anchor, "--anchor", diagonal, *weights)
    for other in (twice, weighted):
        assert other["target_after"] == pytest.approx(alone["target_after"], rel=1e-5)
        assert other["predicted_forgetting"] == pytest.approx(alone["predicted_forgetting"], rel=1e-3)
    assert (twice["penalty"], weighted["penalty"]) == ("kronecker+kronecker", "kronecker+diagonal")


def test_the_source_s_pairs_are_read_by_their_columns(place, tmp_path):  # noqa: F811
    pairs = [{"ask": f"{i} minus {j}?", "say": f"It is {i - j}."} for i in range(6) for j in range(6)]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    columns = ("--source-prompt-column", "ask", "--source-completion-column", "say")
    done = succeeded(
        *tune(place, tmp_path / "o", "--source", tmp_path / "old.jsonl", *columns, "--curvature", "diagonal")
    )
    assert "36 pairs (prompt 'ask', completion 'say')" in done.err


def test_resumed_runs_hold_on_to_the_same_start(place, tmp_path, monkeypatch):  # noqa: F811
    held = ("--curvature", "tridiagonal", "--space", "adapter", *SMALL_SELF, "--save-steps", 1, "--json")
    reference = succeeded(*tune(place, tmp_path / "whole", *held)).json["rows"][0]
    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        _stop_at(patched, 3, "training")
        assert run(*tune(place, folder, *held)).status == 130
    sealed = folder / "checkpoints" / "checkpoint-2" / "sealed.json"
    facts = json.loads(sealed.read_text())
    assert len(facts["start"]) == 64
    sealed.write_text(json.dumps(facts | {"start": "0" * 64}))
    refused(*tune(place, folder, *held, "--resume"), says=["does not start where the run in", "without --resume"])
    sealed.write_text(json.dumps(facts))
    again = succeeded(*tune(place, folder, *held, "--resume")).json["rows"][0]
    assert [again[key] for key in LOSSES] == [reference[key] for key in LOSSES]
    mine, theirs = files_in(folder), files_in(tmp_path / "whole")
    assert mine["adapter/adapter_model.safetensors"] == theirs["adapter/adapter_model.safetensors"]


NONSENSE = {
    "no source": (("--curvature", "kronecker"), ["is measured on source data", "--source self"]),
    "no such kind": (("--curvature", "kroncker", "SOURCE"), ["is called 'kroncker'", "did you mean kronecker"]),
    "space of nothing": (("--space", "adapter", "SOURCE"), ["space=adapter says how", "--curvature names none"]),
    "no such space": (("--curvature", "diagonal", "--space", "adapters", "SOURCE"), ["'weights' or 'adapter'"]),
    "options of nothing": (("--set", "per=sequence"), ["per=sequence says how a curvature is measured"]),
    "options of the identity": (
        ("--curvature", "identity", "--set", "fisher=data"), ["is not measured on data, and fisher says how"],
    ),
    "draws of data": (
        ("--curvature", "diagonal", "--set", "draws=2", "--set", "fisher=data", "SOURCE"), ["draws=2", "'data'"],
    ),
    "prior of weights": (
        ("--curvature", "kronecker", "--set", "prior=1", "SOURCE"), ["no anchor is of them", "--space adapter"],
    ),
    "prior of nothing": (("--set", "prior=1"), ["prior=1.0 is of the penalty", "no anchor is named"]),
    "prior of another form": (
        ("--curvature", "kronecker", "--space", "adapter", "--set", "prior=1", "--set", "form=root", "SOURCE"),
        ["a part of the quadratic form", "'root'"],
    ),
    "weights of nothing": (("--anchor-weight", 1), ["1 anchor_weights for 0 anchors"]),
    "too many weights": (
        ("--anchor", "ANCHOR", "--anchor-weight", 1, "--anchor-weight", 1), ["2 anchor_weights for 1 anchors"],
    ),
    "negative weights": (("--anchor", "ANCHOR", "--anchor-weight", -1), ["anchor_weights: numbers of at least 0"]),
    "an adapter of full tuning": (
        ("--method", "full", "--curvature", "diagonal", "--space", "adapter", "SOURCE"),
        ["--method full makes none", "leave --space out"],
    ),
    "rows of magnitudes": (
        ("--method", "dora", "--curvature", "kronecker", "--space", "adapter", "SOURCE"), ["curvature='diagonal'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_what_makes_no_sense(place, anchor, out, case):  # noqa: F811
    options, says = NONSENSE[case]
    named = {"ANCHOR": (anchor,), "SOURCE": ("--source", place.source)}
    refused(*tune(place, out, *(part for option in options for part in named.get(option, (option,)))), says=says)


def test_an_anchor_that_only_forecasts(place, anchor, diagonal, tmp_path):  # noqa: F811
    plain = row_of(place, tmp_path / "plain", "--anchor", anchor)
    told = row_of(place, tmp_path / "told", "--anchor", anchor, "--forecast", diagonal)
    assert told["source_after"] == plain["source_after"]
    assert told["target_after"] == plain["target_after"]
    assert told["penalty"] == plain["penalty"]
    assert told["predicted_forgetting"] != plain["predicted_forgetting"]
    assert told["predicted_forgetting"] > 0


def test_a_forecast_without_an_anchor_is_refused(place, diagonal, tmp_path):  # noqa: F811
    refused(*tune(place, tmp_path, "--forecast", diagonal), says=["no anchor is named"])


def test_a_rank_that_nothing_has_is_refused(place, tmp_path):  # noqa: F811
    refused(*tune(place, tmp_path, "--method", "full", "--rank", 4), says=["--rank 4", "has none", "leave it out"])


def test_prices_of_sizes_under_a_penalty_of_squares_are_refused(place, tmp_path):  # noqa: F811
    refused(*tune(place, tmp_path, "--source", place.source, "--curvature", "absolute"), says=["--set form=absolute"])
