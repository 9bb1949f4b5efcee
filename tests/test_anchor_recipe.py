"""The anchor's recipe: what it accepts, and that it names what the library takes."""

from typing import get_args

import pytest
import yaml

from holdfast import HoldfastError
from holdfast.anchors.recipe import ITEMS, AnchorRecipe
from holdfast.curvature.offload import Place
from holdfast.estimate import STORAGES
from holdfast.likelihood import Fisher
from holdfast.recipe import dump, validate
from holdfast.rows.origin import Per


def made(**values):
    """The recipe of a model "m" with these values."""
    return validate(AnchorRecipe, {"model": "m"} | values)


def named(field):
    """The names that a field takes."""
    annotation = AnchorRecipe.model_fields[field].annotation
    inner = [get_args(part) for part in get_args(annotation) if get_args(part)]
    return (inner or [get_args(annotation)])[0]


def test_it_names_what_the_library_takes():
    assert named("fisher") == get_args(Fisher)
    assert named("per") == get_args(Per)
    assert named("offload") == get_args(Place)
    assert named("storage") == tuple(STORAGES)


def test_writing_and_reading_changes_nothing():
    recipe = made(source="self", memory=4_000_000_000, targets="q_proj, v_proj", until=0.02)
    assert validate(AnchorRecipe, yaml.safe_load(dump(recipe))) == recipe
    assert (recipe.memory, recipe.targets, recipe.source.path) == ("4000000000", ["q_proj", "v_proj"], "self")


@pytest.mark.parametrize(
    ("values", "items"),
    [({}, ITEMS), ({"max_items": 7}, 7), ({"until": 0.02}, None), ({"until": 0.02, "max_items": 7}, 7)],
)
def test_how_much_is_read(values, items):
    assert made(**values).items == items


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"memory": "4 potatoes"}, "memory: '4 potatoes' is no amount of memory"),
        ({"memory": -1}, "memory: -1 is no amount of memory"),
        ({"until": 1}, "until: it should be less than 1"),
        ({"offload": "gpu"}, "offload: it should be 'cpu' or 'disk'"),
        ({"shard": "perhaps"}, "shard: it should be a valid boolean"),
        ({"keep": 0}, "keep: it should be greater than or equal to 1"),
        ({"products": "int8"}, "products: it should be 'auto', 'float32' or 'bfloat16'"),
        ({"draws": 2, "fisher": "exact"}, "draws=2 draws labels from the model, and fisher is 'exact'"),
        ({"frction": 1}, r"unknown key 'frction' \(did you mean 'fraction'\?\)"),
    ],
)
def test_what_is_refused(values, says):
    with pytest.raises(HoldfastError, match=says):
        made(**values)
