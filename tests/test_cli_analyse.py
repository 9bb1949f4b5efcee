"""`holdfast analyse landscape` and `calibration` from the command line, on a tiny model."""

import json

import pytest
from cli_runs import LENGTH, anchor, files_in, out, place, refused, run, succeeded, tune  # noqa: F401
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from holdfast.adapters import BottleneckConfig

SMALL = ("--points", 5, "--seeds", 2, "--plane", 3, "--items", 200, *LENGTH)
SHORT = ("--steps", 3, "--items", 200, "--held-out", 200, "--keep", 4, *LENGTH)


@pytest.fixture(scope="module")
def run_folder(place):  # noqa: F811
    """A short run with an adapter and checkpoints."""
    folder = place.path / "run"
    succeeded(*tune(place, folder, "--save-steps", 2))
    return folder


def test_help_lists_what_each_shows():
    shown = run("analyse", "--help").out
    assert "landscape" in shown
    assert "calibration" in shown
    assert "Forecast" in shown


def test_landscape(place, run_folder, tmp_path):  # noqa: F811
    arguments = ("analyse", "landscape", "--model", place.model, "--target", place.target, "--out", tmp_path)
    arguments = (*arguments, "--adapter", run_folder / "adapter", *SMALL)
    content = succeeded(*arguments, "--json").json
    assert sorted(files_in(tmp_path)) == ["landscape.html", "landscape.json", "landscape.svg"]
    assert json.loads((tmp_path / "landscape.json").read_text()) == content
    assert {curve["direction"] for curve in content["figures"]["curves"]} == {"gaussian", "gradient", "tuned"}
    assert content["settings"]["grid"]["points"] == 5
    assert content["settings"]["target"]["path"] == str(place.target)
    again = succeeded(*arguments)
    assert content["words"] in " ".join(again.out.split())
    assert json.loads((tmp_path / "landscape.json").read_text())["figures"] == content["figures"]


def test_landscape_without_what_is_optional(place, tmp_path):  # noqa: F811
    flags = ("--no-random", "--no-gradient", "--plane", 0, "--points", 5, "--seeds", 1, "--items", 100, *LENGTH)
    content = succeeded(
        "analyse", "landscape", "--model", place.model, "--target", place.target, "--out", tmp_path, "--json", *flags
    ).json
    assert list(content["figures"]["starts"]) == ["pre-trained"]
    assert len(content["figures"]["curves"]) == 1
    assert content["figures"]["planes"] == []


def test_calibration_trains_where_no_adapter_is_named(place, tmp_path):  # noqa: F811
    content = succeeded(
        "analyse", "calibration", "--model", place.model, "--source", place.source, "--target", place.target,
        "--out", tmp_path, "--json", *SHORT,
    ).json  # fmt: skip
    assert sorted(files_in(tmp_path)) == ["calibration.html", "calibration.json", "calibration.svg"]
    assert set(content["figures"]["anchors"]) == {"kronecker", "diagonal", "samples-joint"}
    assert content["figures"]["places"][-1] == 1.5
    assert all(min(one["forecast"]) > 0 for one in content["figures"]["anchors"].values())


def test_calibration_of_an_adapter_and_a_stored_anchor(place, anchor, run_folder, tmp_path):  # noqa: F811
    arguments = ("analyse", "calibration", "--model", place.model, "--source", place.source, "--anchor", anchor)
    common = ("--held-out", 200, *LENGTH, "--json")
    content = succeeded(
        *arguments, "--adapter", run_folder / "adapter", "--alphas", "1,0.5", "--out", tmp_path / "a", *common
    ).json
    assert content["figures"]["places"] == [0.5, 1.0]
    assert list(content["figures"]["anchors"]) == [str(anchor)]
    both = succeeded(
        *arguments,
        "--checkpoints",
        run_folder,
        "--curvature",
        "eigen",
        "--items",
        100,
        "--out",
        tmp_path / "b",
        *common,
    ).json
    assert both["figures"]["along"] == "optimizer step"
    assert both["figures"]["places"] == [2.0, 4.0]
    assert list(both["figures"]["anchors"]) == [str(anchor), "eigen"]
    end = [
        content["figures"]["anchors"][str(anchor)]["forecast"][1],
        both["figures"]["anchors"][str(anchor)]["forecast"][1],
    ]
    assert end[0] == pytest.approx(end[1], rel=1e-5)  # the last checkpoint is the finished adapter


def test_the_source_may_be_the_models_own_text(place, run_folder, tmp_path):  # noqa: F811
    content = succeeded(
        "analyse", "calibration", "--model", place.model, "--source", "self", "--adapter", run_folder / "adapter",
        "--curvature", "kronecker", "--items", 200, "--held-out", 200, "--out", tmp_path, "--json", *LENGTH,
    ).json  # fmt: skip
    assert "sampled from the model" in content["settings"]["source"]["description"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("landscape", "--points", 4), ["points is 4", "odd"]),
        (("landscape", "--normalise", "row"), ["'row'", "filter"]),
        (("landscape", "--dtype", "int8"), ["--dtype int8"]),
        (("landscape", "--adapter", "nowhere"), ["nowhere", "adapter_config.json"]),
        (("calibration", "--curvature", "identity"), ["identity", "nats"]),
        (("calibration", "--curvature", "kroneker"), ["kroneker", "kronecker"]),
        (("calibration", "--alphas", "1,x"), ["--alphas 1,x"]),
        (("calibration", "--checkpoints", "nowhere"), ["no checkpoint in nowhere"]),
        (("calibration", "--anchor", "nowhere"), ["nowhere"]),
        (("calibration", "--target", "self"), ["--target self"]),
    ],
)
def test_refusals(place, out, more, says):  # noqa: F811
    command, *options = more
    sides = ("--target", place.target) if "--target" not in options else ()
    source = ("--source", place.source) if command == "calibration" else ()
    refused("analyse", command, "--model", place.model, *source, *sides, *options, "--out", out, *LENGTH, says=says)


@pytest.mark.parametrize("command", ["landscape", "calibration"])
def test_an_adapter_without_a_shift_is_refused_with_the_reason(place, out, command, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("bottleneck")
    model = AutoModelForCausalLM.from_pretrained(place.model)
    get_peft_model(model, BottleneckConfig()).save_pretrained(folder)
    source = ("--source", place.source) if command == "calibration" else ("--target", place.target)
    refused(
        "analyse", command, "--model", place.model, *source, "--adapter", folder, "--out", out, *LENGTH,
        says=["BottleneckLayer", "shift is not read"],
    )  # fmt: skip
