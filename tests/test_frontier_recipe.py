"""Recipes of a frontier: ways by name and by keys, grids, ranges, and what is refused."""

from pathlib import Path

import pytest
import yaml

from holdfast.errors import HoldfastError
from holdfast.frontier.combination import Combination, Setting
from holdfast.frontier.limits import ends_in_plain
from holdfast.frontier.plan import planned
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.study import settings_of
from holdfast.frontier.ways import NAMED, USUAL
from holdfast.holding import Holding
from holdfast.recipe import differences, dump, load, validate

BASE = {"model": "m", "target": "t.jsonl", "source": "s.txt", "training": {"steps": 40, "learning_rate": 1e-3}}


def made(**more):
    return validate(FrontierRecipe, {"base": BASE, **more})


@pytest.mark.parametrize("name", [name for name in NAMED if "stops" not in NAMED[name]])
def test_every_named_way_can_be_run(name):
    recipe = made(ways=[name])
    for corner in recipe.corners():
        Holding(recipe.tune_recipe(corner), print)  # names, and options that go together


def test_the_usual_ways_are_named_and_start_with_the_plain_one():
    recipe = made()
    assert [way.name for way in recipe.ways] == list(USUAL)
    assert (recipe.plain, recipe.searched) == ("plain", "pareto")
    assert set(USUAL) <= set(NAMED)


def test_the_example_is_a_recipe():
    path = Path(__file__).parents[1] / "examples" / "frontier.yaml"
    recipe = validate(FrontierRecipe, load(path))
    for corner in recipe.corners():
        Holding(recipe.tune_recipe(corner), print)
    assert (recipe.searched, recipe.settings) == ("pareto", 20)


def test_a_resolved_recipe_is_the_same_recipe():
    recipe = made(ways=["plain", "early-stopping", "l2", {"name": "mine", "like": "kronecker", "damping": [0.0, 0.1]}])
    assert validate(FrontierRecipe, yaml.safe_load(dump(recipe))) == recipe


def test_a_grid_is_every_value_of_every_way():
    recipe = made(
        ways=["plain", {"name": "a", "curvature": "kronecker", "strength": [1, 4], "damping": [0.0, 0.1]}], seeds=2
    )
    assert recipe.searched == "grid"
    words = [(setting.way, setting.words) for setting in recipe.planned()]
    assert words == [
        ("plain", ""),
        ("a", "strength 1, damping 0"),
        ("a", "strength 1, damping 0.1"),
        ("a", "strength 4, damping 0"),
        ("a", "strength 4, damping 0.1"),
    ]
    assert recipe.settings == 5
    names = [Combination(setting, seed).name for setting in recipe.planned() for seed in recipe.seeds]
    assert len(set(names)) == 10
    run = recipe.tune_recipe(Combination(recipe.planned()[4], 1))
    assert (run.curvature, run.strength, run.damping, run.seed) == ("kronecker", 4.0, 0.1, 1)


def test_a_range_in_a_grid_is_spread_evenly_on_its_scale():
    recipe = made(search="grid", ways=[{"name": "a", "distill": {"low": 0.1, "high": 10, "points": 3}}])
    assert [dict(setting.values)["distill"] for setting in recipe.planned()] == [0.1, 1.0, 10.0]
    recipe = made(search="grid", ways=[{"name": "a", "distill": {"low": 0, "high": 1, "log": False, "points": 3}}])
    assert [dict(setting.values)["distill"] for setting in recipe.planned()] == [0.0, 0.5, 1.0]


def test_a_pareto_search_begins_with_every_middle_and_what_has_no_range():
    ways = ["plain", {"name": "a", "distill": {"low": 0.1, "high": 10}}, {"name": "b", "distill": [1, 2]}]
    words = [(setting.way, setting.words) for setting in made(ways=ways).planned()]
    first = [("plain", ""), ("a", "distill 1"), ("b", "distill 1"), ("b", "distill 2")]
    assert words == [*first, ("a", "distill 0.215"), ("a", "distill 4.64")]  # 10^(-2/3) and 10^(2/3)
    assert made(ways=ways).settings == 6 + 1
    assert len(made(ways=ways, trials=5).planned()) == made(ways=ways, trials=5).settings == 5
    assert (len(made(ways=ways, trials=9).planned()), made(ways=ways, trials=9).settings) == (6, 9)
    assert made(ways=ways, trials=1).settings == 4


def test_relative_values_are_multiples_of_the_base():
    recipe = made(search="grid", ways=["low-learning-rate"])
    rates = [recipe.tune_recipe(Combination(s, 0)).training.learning_rate for s in recipe.planned()]
    assert rates == pytest.approx([1e-4, 5e-4])


def test_runs_save_and_measure_so_that_they_resume_and_can_be_stopped_early():
    training = made().tune_recipe(Combination(Setting("plain"), 0)).training
    assert (training.save_steps, training.eval_steps) == (8, 5)
    assert made(along=0, ways=["plain"]).tune_recipe(Combination(Setting("plain"), 0)).training.eval_steps == 0
    epochs = validate(FrontierRecipe, {"base": {**BASE, "training": {"epochs": 2, "batch_size": 4}}})
    training = epochs.tune_recipe(Combination(Setting("plain"), 0), sequences=80).training
    assert (training.save_steps, training.eval_steps) == (8, 5)
    own = validate(FrontierRecipe, {"base": {**BASE, "training": {"steps": 40, "save_steps": 3, "eval_steps": 7}}})
    training = own.tune_recipe(Combination(Setting("plain"), 0)).training
    assert (training.save_steps, training.eval_steps) == (3, 7)


def test_budgets_are_values_to_try():
    recipe = made(ways=["plain", {"name": "b", "curvature": "kronecker", "budget": ["1%", 0.05]}])
    found = [recipe.tune_recipe(Combination(setting, 0)).budget for setting in recipe.planned()]
    assert found == [[], ["1%"], ["0.05"]]
    assert [setting.words for setting in recipe.planned()] == ["", "budget 1%", "budget 0.05"]
    assert ends_in_plain(recipe) == ["b"]


def test_ways_that_end_in_the_plain_run():
    recipe = made(
        ways=[
            *USUAL,
            "frozen-a",
            {"name": "beside", "curvature": "kronecker", "strength": 4, "distill": [0.1, 1]},
            {"name": "both", "curvature": "kronecker", "strength": [1, 4], "distill": [0.1, 1]},
            {"name": "rank", "rank": [4, 16]},
            {"name": "slow and held", "training": {"learning_rate": 1e-4}, "distill": [1]},
        ]
    )
    assert ends_in_plain(recipe) == [
        "low-learning-rate", "l2", "diagonal", "kronecker", "distill-self", "kronecker+distill-self", "both",
    ]  # fmt: skip


def test_a_combination_comes_back_from_what_the_study_keeps():
    run = Combination(Setting("a", (("training.learning_rate", 1e-3), ("budget", "1%"))), 3)
    assert Combination.of(run.attributes()) == run
    assert run.words == "a, learning rate 0.001, budget 1%, seed 3"
    assert run.name == "a-learning_rate-0.001-budget-1pct-seed-3"


def test_settings_that_change_no_run_may_differ():
    ours, theirs = made(trials=30, processes=4, keep=0.8), made(storage="sqlite:////tmp/x.db", accept=0.1)
    assert differences(settings_of(theirs), settings_of(ours)) == []
    changed = differences(
        settings_of(made(ways=["plain", "l2"])), settings_of(made(ways=["plain", "diagonal"], seeds=1))
    )
    assert any(key.startswith("ways.l2.curvature was identity, now None") for key in changed)
    assert any(key.startswith("seeds was [0, 1, 2], now [0]") for key in changed)


def test_a_plan_counts_without_making_anything(tmp_path):
    found = planned(made(ways=["plain", "l2"], trials=6, seeds=2), tmp_path / "out")
    assert (found["runs"], found["settings"], found["to_be_suggested"]) == (12, 6, 2)
    assert found["rows"][1] == {
        "way": "l2", "setting": "strength 0.0775", "runs": 2, "done": 0, "running": 0, "failed": 0, "waiting": 2,
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


REFUSED = {
    "a misspelt way": ({"ways": ["kroneker"]}, "did you mean kronecker"),
    "a misspelt key of a way": ({"ways": [{"name": "a", "strenth": [1]}]}, "'strenth' (did you mean 'strength'?)"),
    "a misspelt part": ({"ways": [{"name": "a", "training": {"learning_rat": [1]}}]}, "'training.learning_rate'"),
    "a misspelt key": ({"sedes": [1]}, "'seeds'"),
    "a common key in a way": ({"ways": [{"name": "a", "seed": [1, 2]}]}, "belongs in `base`"),
    "no name": ({"ways": [{"distill": [1]}]}, "a way needs a name"),
    "a name twice": ({"ways": ["l2", "l2"]}, "'l2' is named twice"),
    "two names of one folder": ({"ways": [{"name": "a b", "rank": 4}, {"name": "a-b", "rank": 2}]}, "'a b' is named"),
    "a range upside down": ({"ways": [{"name": "a", "distill": {"low": 3, "high": 1}}]}, "not below"),
    "half a range": ({"ways": [{"name": "a", "distill": {"low": 3}}]}, "high is missing"),
    "a range without logarithm": ({"ways": [{"name": "a", "distill": {"low": 0, "high": 1}}]}, "log: false"),
    "no values": ({"ways": [{"name": "a", "distill": []}]}, "no values to try"),
    "nothing to stop": ({"ways": ["early-stopping"]}, "stops 'plain' early, which is not among the ways"),
    "stopped without a look": ({"along": 0}, "along=0"),
    "a stop with keys": ({"ways": ["plain", {"name": "a", "stops": "plain", "rank": 4}]}, "leave its keys out"),
    "a base that holds": ({"base": {**BASE, "distill": 1}}, "base holds on already"),
    "no source": ({"base": {"model": "m", "target": "t"}}, "base.source is missing"),
    "a seed in the base": ({"base": {**BASE, "seed": 4}}, "seeds names them"),
    "a seed twice": ({"seeds": [1, 1]}, "named twice"),
    "trials of a grid": ({"ways": ["plain"], "trials": 4}, "this is a grid"),
    "accuracy": ({"accept": "accuracy 1"}, "nats"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_is_wrong(case):
    values, says = REFUSED[case]
    with pytest.raises(HoldfastError) as caught:
        made(**values)
    assert says in str(caught.value)


def test_keys_that_do_not_go_together_are_refused_with_the_ways_name():
    recipe = made(ways=[{"name": "odd", "fisher": "data", "distill": [1]}])
    with pytest.raises(HoldfastError, match="way 'odd': fisher=data"):
        recipe.tune_recipe(recipe.corners()[0])
