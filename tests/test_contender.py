"""Rows of a comparison with methods of their own: what they trained, and prompts continued before and after."""

import pytest
from cli_runs import place
from transformers import AutoTokenizer

from holdfast.comparison import ComparisonSettings, Hold, Workload
from holdfast.contender import Contender
from holdfast.recipe import DataSettings, TrainingSettings
from holdfast.sides import read_side

__all__ = ["place"]


@pytest.fixture(scope="module")
def contender(place):
    """One seed on the tiny model."""
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    new, old = (read_side(DataSettings(path=str(p)), tokenizer, 48).rows for p in (place.target, place.source))
    measured = {f"{side}_{split}": rows[:2] for side, rows in (("source", old), ("target", new))
                for split in ("test", "validation")}  # fmt: skip
    work = Workload(new[2:], old[2:], measured, prompts={"source": "The cat"})
    training = TrainingSettings(steps=3, learning_rate=1e-2)
    settings = ComparisonSettings(model=str(place.model), rank=2, length=48, source_sequences=8, training=training)
    return Contender(settings, work, 0)


@pytest.mark.parametrize(
    ("hold", "options", "trained", "forecast"),
    [
        (Hold(), {"rank": 2}, {"lora_A": 1024, "lora_B": 1152}, True),
        (Hold(method="sift", parameters=100), {"count": 100}, {"sift_weight": 100}, True),
        (Hold(method="lora", parameters=1100), {"rank": 1}, {"lora_A": 512, "lora_B": 576}, True),
        (Hold(method="prefix", tuner={"tokens": 3}, distill=0.1), {"tokens": 3}, {"prefix": 384}, False),
    ],
    ids=["lora", "sift", "lora-small", "prefix"],
)
def test_rows_of_methods(contender, hold, options, trained, forecast):
    row = contender.row(hold)
    assert {key: row["tuner"][key] for key in options} == options
    assert row["trainable_by_component"] == trained
    assert row["trainable_parameters"] == sum(trained.values())
    assert (row["predicted_forgetting"] is not None) == forecast
    (sample,) = row["samples"]
    assert (sample["side"], sample["prompt"]) == ("source", "The cat")
    assert sample["before"] != ""
    assert contender.row(Hold(learning_rate=1e-12))["samples"][0]["before"] == sample["before"]
