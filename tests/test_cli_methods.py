"""`holdfast tune` with every method of the catalogue, end to end: learning, files, loading, resuming, budgets."""

import shutil
import subprocess
import sys

import pytest
import torch
from cli_runs import LENGTH, Place, files_in, make_model, place, refused, succeeded, tune  # noqa: F401
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from holdfast import HoldfastError, catalogue
from holdfast.evaluation import mean_loss
from holdfast.language_model import load_adapter, load_model
from holdfast.recipe import DataSettings, TrainingSettings
from holdfast.sides import read_side
from holdfast.training import train

METHODS = catalogue.names("tuner")
MOVELESS = [name for name in METHODS if not catalogue.tuner(name).shifts]
FILES = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}
SAME = 1e-6  # nats; the same sums in the same order
RATES = {"ia3": 0.1, "prefix": 0.3, "bitfit": 0.05, "sift": 0.03}  # what little is trained takes larger steps


@pytest.fixture(scope="module")
def biased(place, tmp_path_factory):  # noqa: F811
    """The same with a model that has biases, for the method that trains nothing else."""
    path = tmp_path_factory.mktemp("biased")
    shutil.copytree(place.path, path, dirs_exist_ok=True)
    values = LlamaConfig.from_pretrained(place.model).to_dict() | {"attention_bias": True, "mlp_bias": True}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**values)).save_pretrained(path / "model")
    return Place(path, path / "model", path / "source.txt", path / "target.jsonl")


@pytest.fixture(scope="module")
def absolute(place, tmp_path_factory):  # noqa: F811
    """A model with a table of 64 positions, and the place's tokenizer."""
    path = tmp_path_factory.mktemp("absolute") / "model"
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    tokenizer.save_pretrained(path)
    size = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None)).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, biased):
    """A run of each method, its place and its folder."""
    out = biased.path / request.param
    more = ("--method", request.param, "--source", biased.source, "--save-steps", 2, "--json")
    done = succeeded(*tune(biased, out, *more), "--learning-rate", RATES.get(request.param, 1e-2))
    return request.param, biased, out, done


def product(out):
    """The folder of what was trained."""
    return next(out / name for name in FILES if (out / name).is_dir())


def test_it_learns_and_says_what_it_trained(tuned):
    method, _, out, done = tuned
    (row,) = done.json["rows"]
    assert row["method"] == method
    assert row["target_after"] < row["target_before"]
    assert 0 < sum(row["trainable_by_component"].values()) == row["trainable_parameters"] < row["base_parameters"]
    words = ", ".join(f"{name} {count:,}" for name, count in row["trainable_by_component"].items())
    assert f"{row['trainable_parameters']:,} parameters train" in done.err
    assert words in done.err
    assert words in (product(out) / "README.md").read_text()
    assert words in (out / "report.html").read_text()
    assert set(row["tuner"]) == set(catalogue.tuner(method).Options.model_fields)
    if not catalogue.tuner(method).shifts:
        assert row["shift_sizes"] == {}


def test_what_it_leaves_measures_the_same(tuned):
    _, place, out, done = tuned  # noqa: F811
    folder = product(out)
    model = load_model(str(place.model), "auto")
    model = load_adapter(model, str(folder)) if folder.name == "adapter" else load_model(str(folder), "auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for side, path in (("target", place.target), ("source", place.source)):
        rows = read_side(DataSettings(path=str(path)), tokenizer, 48, 0.05).held_out
        assert mean_loss(model, rows).nats == pytest.approx(done.json["rows"][0][f"{side}_after"], abs=SAME)


def test_the_command_line_evaluates_it(tuned):
    _, place, out, _ = tuned  # noqa: F811
    asked = ("evaluate", "--model", place.model, "--adapter", product(out), "--target", place.target, *LENGTH)
    (row,) = succeeded(*asked, "--json").json["rows"]
    assert row["target_after"] < row["target_before"]


def test_it_goes_on_to_the_same_bits(tuned, tmp_path):
    _, _, out, done = tuned
    again = tmp_path / "again"
    shutil.copytree(out / "checkpoints", again / "checkpoints")
    shutil.rmtree(again / "checkpoints" / "checkpoint-4")
    resumed = succeeded("tune", out / "recipe.resolved.yaml", "--out", again, "--resume", "--json")
    assert "going on from step 2" in resumed.err
    name = FILES[product(out).name]
    assert files_in(product(again))[name] == files_in(product(out))[name]
    assert resumed.json["rows"][0]["target_after"] == done.json["rows"][0]["target_after"]


@pytest.mark.parametrize("method", [name for name in METHODS if catalogue.tuner(name).sizes])
def test_a_budget_of_parameters(place, tmp_path, method):  # noqa: F811
    asked = (*tune(place, tmp_path / "out", "--method", method, "--steps", 1), "--parameters", "10%", "--json")
    done = succeeded(*asked)
    (row,) = done.json["rows"]
    tuner, allowed = catalogue.tuner(method), row["base_parameters"] // 10
    assert 0.6 * allowed < row["trainable_parameters"] <= allowed
    size = row["tuner"][tuner.sizes[0]]
    assert f"{tuner.sizes[0]} {size}: {row['trainable_parameters']:,} parameters train (" in done.err
    if tuner.counts:
        assert row["trainable_parameters"] == allowed


@pytest.mark.parametrize("method", [*(name for name in MOVELESS if catalogue.tuner(name).adapter), "ia3", "sift"])
@pytest.mark.parametrize(
    "held",
    [
        ("--distill", 1),
        ("--budget", 2, "--set", "steering=0.3", "--set", "held_out=0.3"),
        ("--curvature", "diagonal", "--space", "adapter"),
    ],
    ids=["distill", "budget", "adapter"],
)
def test_they_hold_on_where_they_can(place, tmp_path, method, held):  # noqa: F811
    more = ("--method", method, "--source", place.source, "--json", *held)
    (row,) = succeeded(*tune(place, tmp_path / "out", *more)).json["rows"]
    assert row["predicted_forgetting"] is not None
    if "--budget" in held:
        assert row["budget"] == 2
        assert row["calibrated_forecast"] <= 2


@pytest.mark.parametrize("method", MOVELESS)
def test_anchors_of_weights_are_refused(place, out_of, method):  # noqa: F811
    says = ["moves no weight that an anchor of weights prices", "--distill"]
    says.append("--space adapter" if catalogue.tuner(method).adapter else "distill_top_k")
    asked = tune(place, out_of, "--method", method, "--source", place.source)
    refused(*asked, "--curvature", "kronecker", says=says)


@pytest.fixture
def out_of(tmp_path):
    """A folder that a refused command may not make."""
    yield tmp_path / "out"
    assert not (tmp_path / "out").exists()


OPTIONS = {
    "misspelt": (
        ("--method", "sift", "--set", "tuner.densty=0.1"),
        ["'tuner.densty' (did you mean 'tuner.density'"],
    ),
    "of another": (("--set", "tuner.density=0.1"), ["unknown key 'tuner.density'"]),
    "misspelt score": (
        ("--method", "sift", "--set", "tuner.score=fischer"),
        ["tuner.score: it should be one of gradient, fisher", "did you mean fisher?"],
    ),
    "out of range": (("--method", "sift", "--set", "tuner.density=2"), ["tuner.density: it should be less than or"]),
    "none": (("--method", "ia3", "--set", "tuner.rank=1"), ["--method ia3 has no options of its own"]),
    "rank of none": (("--method", "prefix", "--rank", 4), ["--rank 4: --method prefix has none", "tuner.tokens"]),
    "rank of none, the default": (("--method", "ia3", "--rank", 8), ["--rank 8: --method ia3 has none"]),
    "two sizes, one the default": (("--parameters", "1%", "--rank", 8), ["parameters=1% sets rank, and rank=8"]),
    "a prefix too long": (
        ("--method", "prefix", "--set", "tuner.tokens=20", "--model", "ABSOLUTE"),
        ["20 positions before rows of 48 tokens", "a table of 64 (transformer.wpe)", "--length 44"],
    ),
    "rank below": (("--set", "tuner.rank=4"), ["tuner.rank=4: recipes have rank at their top", "rank=4"]),
    "targets of a prefix": (("--method", "prefix", "--targets", "q_proj"), ["before every attention layer"]),
    "no biases": (("--method", "bitfit"), ["no biases to train", "Llama"]),
    "two sizes": (("--parameters", "1%", "--rank", 4), ["parameters=1% sets rank, and rank=4"]),
    "density too": (
        ("--method", "sift", "--parameters", 9, "--set", "tuner.density=0.1"),
        ["sets count, and density=0.1"],
    ),
    "no amount": (("--parameters", "many"), ["parameters: it should be a share of the model, such as 0.5%"]),
    "no size": (("--method", "full", "--parameters", "1%"), ["--parameters 308: --method full trains 20,480"]),
    "too few": (
        ("--parameters", 500),
        ["--parameters 500: --method lora trains 1,088 already", "(rank 1)", "allow 1,088 ("],
    ),
    "exchanged": (
        ("--method", "sift", "--set", "tuner.refresh=2", "--source", "SOURCE", "--budget", 0.1),
        ["budget=0.1 counts from where", "tuner.refresh=0"],
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(place, absolute, out_of, case):  # noqa: F811
    options, says = OPTIONS[case]
    places = {"SOURCE": place.source, "ABSOLUTE": absolute}
    refused(*tune(place, out_of), *(places.get(one, one) for one in options), says=says)


def test_an_option_is_set_as_the_list_has_it(place, tmp_path):  # noqa: F811
    more = ("--method", "convadapter", "--set", "tuner.se_reduction=null", "--set", "tuner.kernels=[3, 3]", "--json")
    (row,) = succeeded(*tune(place, tmp_path / "out", *more)).json["rows"]
    assert set(row["trainable_by_component"]) == {"norm", "convolutions"}
    assert row["tuner"]["kernels"] == [3, 3]


def test_a_gate_that_a_budget_makes_smaller_is_said(place, tmp_path):  # noqa: F811
    done = succeeded(*tune(place, tmp_path / "out", "--method", "convadapter", "--parameters", 850, "--json"))
    assert "se_reduction 32, mixing null: 800 parameters train" in done.err


def test_biases_of_the_targets_alone(biased, tmp_path):
    more = ("--method", "bitfit", "--targets", "q_proj", "--json")
    refused(*tune(biased, tmp_path / "out", *more), says=["every bias of the model trains", "tuner.of=targets"])
    (row,) = succeeded(*tune(biased, tmp_path / "out", *more), "--set", "tuner.of=targets").json["rows"]
    assert row["trainable_by_component"] == {"bias": 2 * 32}


def test_entries_that_are_exchanged_along_the_way(place, tmp_path):  # noqa: F811
    more = ("--method", "sift", "--set", "tuner.refresh=1", "--set", "tuner.batches=2", "--set", "tuner.scope=global")
    out, again = tmp_path / "out", tmp_path / "again"
    (row,) = succeeded(*tune(place, out, *more, "--save-steps", 2, "--json")).json["rows"]
    assert row["target_after"] < row["target_before"]
    shutil.copytree(out / "checkpoints" / "checkpoint-2", again / "checkpoints" / "checkpoint-2")
    succeeded("tune", out / "recipe.resolved.yaml", "--out", again, "--resume")
    assert files_in(again / "adapter")[FILES["adapter"]] == files_in(out / "adapter")[FILES["adapter"]]


TENTH = ("--set", "tuner.density=0.1")


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (
            "input_layernorm,norm,embed_tokens,q_proj",
            ("--set", "tuner.biases=true", "--set", "tuner.scope=row", *TENTH),
        ),
        (r".*norm", ("--set", "tuner.decay_to=start", "--set", "tuner.score=taylor", *TENTH)),
        ("all-linear", ("--set", "tuner.score=magnitude", "--set", "tuner.scope=global", *TENTH)),
        ("down_proj", ("--set", "tuner.score=fisher", "--set", "tuner.batches=3", "--parameters", 100)),
    ],
)
def test_entries_of_every_kind_of_layer_and_choice(place, tmp_path, targets, options):  # noqa: F811
    more = ("--method", "sift", "--targets", targets, *options)
    (row,) = succeeded(*tune(place, tmp_path / "out", *more, "--learning-rate", 0.03, "--json")).json["rows"]
    assert row["target_after"] < row["target_before"]
    assert sum(row["trainable_by_component"].values()) == row["trainable_parameters"]


@pytest.mark.parametrize("method", ["sift", "ia3"])
def test_other_shifts_are_held_by_an_anchor_of_weights(place, tmp_path, method):  # noqa: F811
    held = ("--method", method, "--curvature", "kronecker", "--source", place.source, "--json")
    rows = [
        succeeded(*tune(place, tmp_path / str(strength), *held, "--strength", strength)).json["rows"][0]
        for strength in (0, 1e4)
    ]
    assert 0 < rows[1]["predicted_forgetting"] < rows[0]["predicted_forgetting"]
    assert sorted(rows[0]["shift_sizes"]) == sorted(rows[0]["per_layer"])


def test_biases_hold_on_by_stored_answers(biased, tmp_path):
    held = ("--method", "bitfit", "--source", biased.source, "--distill", 1)
    refused(*tune(biased, tmp_path / "out", *held), says=["no adapter to switch off", "distill_top_k=256"])
    done = succeeded(*tune(biased, tmp_path / "out", *held), "--set", "distill_top_k=16", "--json")
    assert done.json["rows"][0]["predicted_forgetting"] is not None


def test_a_parameter_that_nothing_reaches(place):  # noqa: F811
    model = load_model(str(place.model), "float32")
    model.idle = torch.nn.Parameter(torch.zeros(2))
    rows = read_side(DataSettings(path=str(place.target)), AutoTokenizer.from_pretrained(place.model), 48).rows
    with pytest.raises(HoldfastError, match=r"1 of .* trainable parameters got no gradient: idle"):
        train(model, rows, TrainingSettings(steps=1), quiet=True)


ELSEWHERE = """
import re, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
card, folder = open(sys.argv[1]).read(), sys.argv[2]
try:
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[3]), folder)
except KeyError as error:
    print("KeyError", error)
exec(re.search(r"```python\\n(.*?)```", card, re.S)[1].replace("THIS FOLDER", folder))
print(type(model).__name__, list(model.peft_config))
"""


def test_the_card_says_how_to_load_it(place, tmp_path):  # noqa: F811
    succeeded(*tune(place, tmp_path / "out", "--method", "sift"))
    folder = tmp_path / "out" / "adapter"
    code = [sys.executable, "-c", ELSEWHERE, folder / "README.md", folder, place.model]
    ran = subprocess.run(list(map(str, code)), capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.splitlines() == ["KeyError 'SIFT'", "PeftModelForCausalLM ['default']"]
    assert "`KeyError`" in (folder / "README.md").read_text()


def test_methods_are_listed_with_their_papers():
    said = {entry["name"]: entry["paper"] for entry in succeeded("methods", "--json").json if entry["room"] == "tuner"}
    papers = {"ia3": "2205.05638", "prefix": "2101.00190", "bitfit": "2106.10199", "bottleneck": "1902.00751",
              "convadapter": "2303.03267", "sift": "2312.11875"}  # fmt: skip
    assert {name: paper in said[name] for name, paper in papers.items()} == dict.fromkeys(papers, True)


def test_methods_are_listed_with_their_options():
    (sift,) = [entry for entry in succeeded("methods", "--json").json if entry["name"] == "sift"]
    options = {option["name"]: option for option in sift["options"]}
    assert (options["density"]["default"], options["density"]["sizes"]) == (None, False)
    assert options["count"]["sizes"]
    assert all(option["what"] for option in options.values())
    said = succeeded("methods").out
    assert "tuner.density" in said
    assert "tuner.rank" not in said
    (kernels,) = [line.split() for line in said.splitlines() if "tuner.kernels" in line]
    assert kernels[2:5] == ["[3,", "5,", "3]"]  # as --set takes them


@pytest.mark.parametrize("name", [name for name in METHODS if catalogue.tuner(name).registered_by])
def test_options_are_the_configuration_s_own(name):
    """Same names, same defaults: what a method's file says twice can't drift apart."""
    from dataclasses import fields

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    tuner = catalogue.tuner(name)
    model = tuner().prepare(make_model(300), "all-linear")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[model.peft_config["default"].peft_type]
    known = {field.name: field.default for field in fields(config)}
    own = {key: field.default for key, field in tuner.Options.model_fields.items()}
    assert own == {key: known[key] for key in own}
