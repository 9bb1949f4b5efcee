"""`holdfast frontier` over methods: at equal parameters, and over the values of a method's own options."""

import pytest
import yaml

pytest.importorskip("optuna")

from cli_runs import place, refused, succeeded

from holdfast import HoldfastError
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.ways import NAMED
from holdfast.recipe import validate

__all__ = ["place"]
LEAST = {"model": "m", "target": "t.txt", "source": "self"}


def write(place, path, ways, **base):
    """A recipe of the tiny model, one seed."""
    training = {"steps": 2, "learning_rate": 1e-2}
    common = {"model": str(place.model), "target": str(place.target), "source": str(place.source), "length": 48}
    path.write_text(yaml.safe_dump({"base": {**common, "training": training, **base}, "ways": ways, "seeds": 1}))
    return path


def test_methods_at_equal_parameters(place, tmp_path):
    recipe = write(place, tmp_path / "f.yaml", ["plain", "sift", "bottleneck", "prefix"], parameters="8%")
    done = succeeded("frontier", recipe, "--out", tmp_path / "out", "--processes", 1, "--json")
    rows = {row["way"]: row for row in done.json["rows"]}
    assert {name: row["method"] for name, row in rows.items()} == {
        "plain": "lora", "sift": "sift", "bottleneck": "bottleneck", "prefix": "prefix",
    }  # fmt: skip
    allowed = rows["plain"]["base_parameters"] * 8 // 100
    assert rows["sift"]["trainable_parameters"] == allowed
    assert all(0.6 * allowed < row["trainable_parameters"] <= allowed for row in rows.values())


def test_a_method_without_a_size_is_found_before_anything_runs(place, tmp_path):
    recipe = write(place, tmp_path / "f.yaml", ["plain", "ia3"], parameters="8%")
    says = ["--method ia3 trains 256 parameters of this model, and has no size"]
    refused("frontier", recipe, "--out", tmp_path / "out", says=says)


def test_values_of_a_method_s_own_options():
    ways = [{"name": "few", "method": "sift", "tuner": {"density": [0.01, 0.1], "scope": "row"}}]
    ways.append({"name": "many", "like": "sift", "tuner.density": {"low": 0.1, "high": 0.9, "points": 2}})
    recipe = validate(FrontierRecipe, {"base": LEAST, "ways": ways, "search": "grid", "seeds": 1})
    tuners = [recipe.tune_recipe(combination).tuner for combination in recipe.corners()]
    assert tuners[:2] == [{"density": 0.01, "scope": "row"}, {"density": 0.1, "scope": "row"}]
    assert [tuner["density"] for tuner in tuners[2:]] == [0.1, 0.9]


def test_a_relative_range_of_what_base_does_not_say():
    way = {"name": "many", "method": "sift", "tuner.density": {"low": 0.5, "high": 2, "relative": True}}
    with pytest.raises(HoldfastError, match=r"a relative range of tuner\.density, which base has not"):
        validate(FrontierRecipe, {"base": LEAST, "ways": [way], "search": "grid"}).corners()


@pytest.mark.parametrize("name", [name for name, keys in NAMED.items() if "method" in keys])
def test_named_ways_of_methods(name):
    recipe = validate(FrontierRecipe, {"base": LEAST, "ways": [name]})
    from holdfast.tuning_method import tuner_of

    found = tuner_of(recipe.tune_recipe(recipe.corners()[0]))
    assert found.name == NAMED[name]["method"]
