"""The recipe that the report offers to copy is one that `holdfast tune` takes, and hides nothing."""

import yaml
from report_rows import row

from holdfast.recipe import validate
from holdfast.report.reproducing import recipe_text
from holdfast.tune_recipe import TuneRecipe


def test_a_tuning_run_gives_its_own_recipe_back():
    recipe = validate(TuneRecipe, {"model": "llama", "target": "new.txt", "anchor": ["k"], "strength": 4.0, "seed": 3})
    settings = recipe.model_dump(mode="json")
    text = recipe_text(row("kronecker", 4.0, seed=3), settings)
    assert validate(TuneRecipe, yaml.safe_load(text)) == recipe
    assert "#" not in text
    assert "held_out" not in text  # at its default


def test_a_comparisons_run_names_what_is_missing_and_what_no_recipe_has():
    hold = {"curvature": "kronecker", "strength": 8.0, "distill": 0.6, "learning_rate": 0.01, "replay": 0.3}
    common = {"model": "llama", "rank": 4, "source_sequences": 256, "training": {"steps": 200, "learning_rate": 0.003}}
    text = recipe_text(row("kronecker+distill-self+replay", 8.0, seed=2, hold=hold), common)
    assert "# target: name yours here" in text
    assert "replay: 0.3" in [line for line in text.splitlines() if line.startswith("#")][-1]
    found = validate(TuneRecipe, yaml.safe_load(text) | {"target": "new.txt"})
    assert (found.curvature, found.strength, found.distill, found.seed, found.rank) == ("kronecker", 8.0, 0.6, 2, 4)
    assert (found.training.learning_rate, found.training.steps) == (0.01, 200)
    assert found.source.path == "self"


def test_a_merged_row_brings_its_own_settings():
    one = row(settings={"model": "its own", "target": {"path": "a.txt"}})
    assert yaml.safe_load(recipe_text(one, {"model": "all's"}))["model"] == "its own"


def test_settings_of_an_older_version_are_shown_as_recorded():
    found = yaml.safe_load(recipe_text(row(), {"model": "llama", "target": {"path": "a"}, "rank": "eight"}))
    assert found["rank"] == "eight"
