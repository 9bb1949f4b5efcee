"""The forms of an anchor's penalty, chosen by the recipe of `holdfast tune`."""

import pytest
import yaml
from cli_runs import LENGTH, anchor, out, place, refused, succeeded, tune  # noqa: F401

FORMS = {  # the recipe's form -> the anchor's curvature, and what the row is called
    "quadratic": ("kronecker", "kronecker"),
    "root": ("kronecker", "kronecker-root"),
    "absolute": ("absolute", "absolute-absolute"),
}


@pytest.fixture(scope="module")
def absolute(place):  # noqa: F811
    """An anchor for the absolute penalty."""
    folder = place.path / "absolute"
    options = ("--model", place.model, "--source", place.source, "--curvature", "absolute", *LENGTH)
    succeeded("anchor", *options, "--out", folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_cards_say_which_form_it_was(place, anchor, absolute, tmp_path, form):  # noqa: F811
    kind, penalty = FORMS[form]
    chosen = {"kronecker": anchor, "absolute": absolute}[kind]
    results = succeeded(*tune(place, tmp_path, "--anchor", chosen, "--set", f"form={form}", "--json")).json
    (row,) = results["rows"]
    assert (row["form"], row["penalty"], row["strength"]) == (form, penalty, 1.0)
    assert (row["predicted_forgetting"] is None) == (form == "absolute")
    assert (row["per_layer"] == {}) == (form == "absolute")  # a share of a forecast that does not exist
    assert yaml.safe_load((tmp_path / "recipe.resolved.yaml").read_text())["form"] == form
    assert f"{form} penalty" in (tmp_path / "adapter" / "README.md").read_text()


def test_forms_hold_differently(place, anchor, tmp_path):  # noqa: F811
    forecasts = []
    for form in ("quadratic", "root"):
        done = succeeded(*tune(place, tmp_path / form, "--anchor", anchor, "--set", f"form={form}", "--json"))
        forecasts.append(done.json["rows"][0]["predicted_forgetting"])
    assert forecasts[1] < 0.9 * forecasts[0]  # near the anchor, the root pulls harder


@pytest.mark.parametrize("form", ["rot", "distill", "together"])
def test_what_is_no_form(place, anchor, out, form):  # noqa: F811
    says = [f"is called '{form}'", "one of absolute, quadratic, root"]
    refused(*tune(place, out, "--anchor", anchor, "--set", f"form={form}"), says=says)


def test_a_form_of_nothing(place, out):  # noqa: F811
    refused(*tune(place, out, "--set", "form=root"), says=["form=root", "no anchor is named"])


def test_a_form_on_another_curvature(place, anchor, out):  # noqa: F811
    says = ["absolute penalty can't use an anchor of curvature 'kronecker'", "curvature='absolute'"]
    refused(*tune(place, out, "--anchor", anchor, "--set", "form=absolute"), says=says)
