"""Recipes: what they accept, what they say of the rest, and that writing and reading them changes nothing."""

from pathlib import Path

import pytest
import yaml

from holdfast import HoldfastError
from holdfast.recipe import (
    DataSettings,
    TrainingSettings,
    dump,
    layer_names,
    load,
    merge,
    override,
    validate,
)
from holdfast.tune_recipe import TuneRecipe

LEAST = {"model": "m", "target": {"path": "t.jsonl"}}


def refused(*parts, **values):
    """The message of a recipe with these values."""
    with pytest.raises(HoldfastError) as caught:
        validate(TuneRecipe, LEAST | values)
    missing = [part for part in parts if part not in str(caught.value)]
    assert missing == [], str(caught.value)
    return str(caught.value)


def test_writing_and_reading_changes_nothing():
    values = LEAST | {"source": {"path": "self"}, "distill": 0.3, "anchor": "a", "targets": ["q_proj"], "alpha": 3}
    recipe = validate(TuneRecipe, values | {"training": {"learning_rate": 1e-5, "steps": 7}})
    assert validate(TuneRecipe, yaml.safe_load(dump(recipe))) == recipe
    assert (recipe.anchor, recipe.alpha, recipe.training.steps) == ([Path("a")], 3.0, 7)


def test_yaml_reads_some_numbers_as_text():
    values = yaml.safe_load("{model: m, target: t.txt, training: {learning_rate: 2e-4}}")
    assert values["training"]["learning_rate"] == "2e-4"  # YAML 1.1 wants 2.0e-4
    recipe = validate(TuneRecipe, values)
    assert recipe.training.learning_rate == 2e-4
    assert recipe.target == DataSettings(path="t.txt")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"strenght": 1}, ["unknown key 'strenght' (did you mean 'strength'?)"]),
        ({"training": {"lr": 1}}, ["unknown key 'training.lr'", "did you mean 'training."]),
        ({"lerning_rate": 1}, ["did you mean 'training.learning_rate'?"]),
        ({"source": {"pth": "x"}}, ["source.path is missing", "did you mean 'source.path'?"]),
        (
            {"zzz": 1},
            ["unknown key 'zzz'\n", "wanted: keys of a recipe: model, target.path", "training.steps", "seed"],
        ),
        ({"strength": -1}, ["strength: it should be greater than or equal to 0 (got -1)"]),
        ({"strength": float("nan")}, ["strength: it should be a finite number (got nan)"]),
        ({"damping": float("inf")}, ["damping: it should be a finite number (got inf)"]),
        ({"rank": 0}, ["rank: it should be greater than or equal to 1 (got 0)"]),
        ({"rank": "many"}, ["rank: it should be a valid integer", "(got 'many')"]),
        ({"held_out": 1}, ["held_out: it should be less than 1 (got 1)"]),
        ({"dtype": "int8"}, ["dtype: it should be 'auto', 'float32', 'bfloat16' or 'float16' (got 'int8')"]),
        ({"distill": 0.3}, ["distillation needs --source DATA, or --source self"]),
        ({"training": {"steps": 0}}, ["training.steps: at least 1 step, or -1"]),
        ({"training": {"schedule": "sine"}}, ["training.schedule: it should be 'cosine', 'linear'"]),
        ({"training": 5}, ["training: it should be a mapping of keys to values (got 5)"]),
        ({"target": ["a"]}, ["target: it should be a mapping of keys to values (got ['a'])"]),
        ({"targets": 5}, ["targets: it should be a valid string (got 5)"]),
        ({"model": None, "seed": "x"}, ["model: it should be a valid string (got None)", "seed: it should be"]),
    ],
)
def test_what_is_refused(values, parts):
    refused(*parts, **values)


def test_the_least():
    recipe = validate(TuneRecipe, LEAST)
    assert recipe.training == TrainingSettings()
    with pytest.raises(HoldfastError, match=r"model is missing; target is missing"):
        validate(TuneRecipe, {})


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("layers.0.self_attn.q_proj", ["layers.0.self_attn.q_proj"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        (r"layers\.\d{1,2}\.q_proj", r"layers\.\d{1,2}\.q_proj"),
        (["q_proj"], ["q_proj"]),
    ],
)
def test_layer_names(targets, names):
    assert layer_names(targets) == names
    assert validate(TuneRecipe, LEAST | {"targets": targets}).targets == names


def test_what_is_given_beside_a_recipe_wins():
    recipe = {"model": "m", "target": "t.jsonl", "training": {"steps": 3, "clip": 0.5}, "seed": 1}
    given = {"seed": None, "rank": 2, "target": {"text": "body", "path": None}, "training": {"steps": 4}, "source": {}}
    assert merge(recipe, given) == {
        "model": "m",
        "target": {"path": "t.jsonl", "text": "body"},
        "training": {"steps": 4, "clip": 0.5},
        "seed": 1,
        "rank": 2,
    }
    assert recipe["training"] == {"steps": 3, "clip": 0.5}


def test_overrides():
    values = {"model": "m", "target": "t.jsonl", "training": {"steps": 3}}
    changed = override(
        values, ["training.clip=0.5", "target.text=body", "source.path=self", "targets=[a, b]", "x=a=b"]
    )
    assert changed == {
        "model": "m",
        "target": {"path": "t.jsonl", "text": "body"},
        "training": {"steps": 3, "clip": 0.5},
        "source": {"path": "self"},
        "targets": ["a", "b"],
        "x": "a=b",
    }
    assert values == {"model": "m", "target": "t.jsonl", "training": {"steps": 3}}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("seed", "--set seed sets nothing"),
        ("=3", "--set =3 sets nothing"),
        ("model.path=x", "'model' is not a part of the recipe"),
        ("targets=[a", "the value is not YAML"),
    ],
)
def test_overrides_that_are_refused(setting, says):
    with pytest.raises(HoldfastError, match=says):
        override(LEAST, [setting])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can't be read: No such file"),
        (b"a: [", "is not YAML"),
        (b"- a", "is not a mapping"),
        (b"", "is not a mapping"),
        (b"\xff\xfe\0", "is not text"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, says):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HoldfastError, match=rf"(?s){says}.*remedy: name the recipe"):
        load(path)
