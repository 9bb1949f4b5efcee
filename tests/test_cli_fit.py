"""`holdfast fit` from its arguments to its files, and what it refuses."""

import errno
import json
import os
import shutil
from typing import Any

import pytest
import torch
import yaml
from adapted import move
from cli_runs import LENGTH, SENTENCES, anchor, files_in, make_model, out, place, refused, succeeded, tune  # noqa: F401
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast import Anchor
from holdfast.evaluation import mean_loss
from holdfast.penalties.quadratic import Penalty
from holdfast.recipe import DataSettings
from holdfast.sides import read_side
from holdfast.sift import SiftConfig

BUDGET = 0.002
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def tuned(place):  # noqa: F811
    """A finished plain LoRA of the tiny model."""
    folder = place.path / "plain"
    succeeded(*tune(place, folder, "--steps", 30))
    return folder / "adapter"


@pytest.fixture(scope="module")
def whole(place):  # noqa: F811
    """The same of full fine-tuning."""
    folder = place.path / "whole"
    succeeded(*tune(place, folder, "--steps", 12, "--method", "full"))
    return folder / "model"


@pytest.fixture(scope="module")
def source(place):  # noqa: F811
    """Enough old data to measure small budgets on."""
    path = place.path / "much.txt"
    path.write_text("\n".join(SENTENCES * 250) + "\n")
    return path


def fit(adapter, anchor, out, *more, budget: Any = BUDGET):  # noqa: F811
    return ("fit", "--adapter", adapter, "--anchor", anchor, "--budget", budget, "--out", out, *more)


def forecast(place, folder, anchor):  # noqa: F811
    """What the anchor says of an adapter that stock PEFT has loaded."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.model), folder)
    return Penalty(model, Anchor.load(anchor)).predicted_forgetting


def test_a_sift_adapter_is_brought_inside_too(place, anchor, tmp_path):  # noqa: F811
    sift = SiftConfig(target_modules=["q_proj", "down_proj"], density=0.05, score="random")
    model = move(get_peft_model(AutoModelForCausalLM.from_pretrained(place.model), sift), size=2.0)
    model.save_pretrained(tmp_path / "few")
    row = {}
    for how in ("scale", "layers", "project"):
        done = succeeded(*fit(tmp_path / "few", anchor, tmp_path / how, "--how", how, "--json"))
        row[how] = done.json["rows"][0]
        assert row[how]["predicted_unfitted"] > 2 * BUDGET
        found = forecast(place, tmp_path / how / "adapter", anchor)
        assert found == pytest.approx(BUDGET, rel=1e-3 if how == "project" else 1e-5)
    came, fitted = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "few", tmp_path / "scale/adapter"))
    assert came.keys() == fitted.keys()
    for name in came:
        assert torch.equal(came[name], fitted[name]) == (not name.endswith("values"))  # the places are the same


@pytest.mark.parametrize("how", ["scale", "layers"])
def test_stock_peft_loads_it_and_its_forecast_is_the_budget(place, anchor, tuned, tmp_path, how):  # noqa: F811
    done = succeeded(*fit(tuned, anchor, tmp_path / "o", "--how", how, "--json"))
    assert json.loads((tmp_path / "o" / "results.json").read_text()) == done.json
    row = done.json["rows"][0]
    assert forecast(place, tuned, anchor) == pytest.approx(row["predicted_unfitted"], rel=1e-6)
    assert row["predicted_unfitted"] > 2 * BUDGET
    assert row["predicted_forgetting"] == pytest.approx(BUDGET, rel=1e-6)
    assert forecast(place, tmp_path / "o" / "adapter", anchor) == pytest.approx(BUDGET, rel=1e-6)
    came, fitted = (load_file(f / "adapter_model.safetensors") for f in (tuned, tmp_path / "o" / "adapter"))
    assert list(came) == list(fitted)
    for name, tensor in came.items():
        layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
        factor = row["factors"][layer] if "lora_B" in name else 1.0
        assert torch.equal(fitted[name], tensor * factor), name
    for name in ("adapter_config.json", "tokenizer.json"):
        assert (tmp_path / "o" / "adapter" / name).read_bytes() == (tuned / name).read_bytes()
    assert (row["method"], row["penalty"], row["steered_by"], row["changed"]) == (
        "adapter", f"fit-{how}", "forecast", True,
    )  # fmt: skip
    assert ("scaled_by" in row) == (how == "scale")
    assert sum(row["per_layer"].values()) == pytest.approx(BUDGET, rel=1e-5)
    assert any("forecast alone decided" in warning for warning in done.json["warnings"])
    assert files_in(tmp_path).keys() == {f"o/{name}" for name in ("results.json", *sorted(
        f"adapter/{path.name}" for path in tuned.iterdir()))}  # fmt: skip


@pytest.mark.parametrize("how", ["scale", "layers", "project"])
def test_what_is_measured_decides(place, anchor, tuned, source, tmp_path, how):  # noqa: F811
    data = ("--source", source, "--target", place.target, *LENGTH)
    done = succeeded(*fit(tuned, anchor, tmp_path / "o", "--how", how, *data, "--json", budget="0.5%"))
    row = done.json["rows"][0]
    assert row["steered_by"] == "measurement"
    assert row["budget"] == pytest.approx(0.00498754)
    assert row["budget_words"].startswith("0.5 % of perplexity")
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    base = AutoModelForCausalLM.from_pretrained(place.model)
    sides = {
        "source": read_side(DataSettings(path=str(source)), tokenizer, 48, 0.5),
        "target": read_side(DataSettings(path=str(place.target)), tokenizer, 48, 0.5),
    }
    before = {name: mean_loss(base, side.held_out).nats for name, side in sides.items()}
    steered = mean_loss(base, sides["source"].rows).nats
    model = PeftModel.from_pretrained(base, tmp_path / "o" / "adapter")
    for name, side in sides.items():
        assert row[f"{name}_before"] == pytest.approx(before[name], abs=1e-6)
        assert row[f"{name}_after"] == pytest.approx(mean_loss(model, side.held_out).nats, abs=1e-6)
    assert row["forgetting"] == pytest.approx(row["source_after"] - row["source_before"], abs=1e-6)
    assert row["forgetting_error"] > 0
    assert row["forgetting_unfitted"] == pytest.approx(row["source_unfitted"] - row["source_before"], abs=1e-6)
    steered = mean_loss(model, sides["source"].rows).nats - steered  # not the rows that are reported
    assert 0.95 * row["budget"] <= steered + 1e-6 <= row["budget"] + 2e-6
    assert row["target_unfitted"] < row["target_after"] < row["target_before"]
    assert [point["forgetting"] for point in row["search"]][-1] == pytest.approx(steered, abs=1e-6)


def test_a_wholly_tuned_model(place, anchor, whole, tmp_path):  # noqa: F811
    done = succeeded(*fit(whole, anchor, tmp_path / "o", "--json"))
    assert done.json["settings"]["model"] == str(place.model)  # the anchor says which the base is
    row = done.json["rows"][0]
    assert (row["method"], row["changed"]) == ("model", True)
    assert row["predicted_forgetting"] == pytest.approx(BUDGET, rel=1e-5)
    base, came, fitted = (
        AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (place.model, whole, tmp_path / "o" / "model")
    )
    for name, tensor in base.items():
        factor = row["factors"].get(name.removesuffix(".weight"))
        if factor is None:
            assert torch.equal(fitted[name], tensor)
        else:
            torch.testing.assert_close(fitted[name], tensor + factor * (came[name] - tensor), rtol=0, atol=1e-7)
    again = succeeded("evaluate", "--model", place.model, "--adapter", tmp_path / "o" / "model", "--source",
                      place.source, *LENGTH, "--json").json["rows"][0]  # fmt: skip
    assert again["source_after"] != again["source_before"]


def test_an_adapter_inside_its_budget_is_copied(place, anchor, tuned, source, tmp_path):  # noqa: F811
    """Twice: a second fit may replace the first."""
    for _ in range(2):
        done = succeeded(*fit(tuned, anchor, tmp_path / "o", "--source", source, *LENGTH, budget=5))
        assert "was inside its budget" in done.err
    row = json.loads((tmp_path / "o" / "results.json").read_text())["rows"][0]
    assert (row["changed"], row["scaled_by"]) == (False, 1.0)
    assert row["predicted_forgetting"] == row["predicted_unfitted"]
    assert row["source_after"] == row["source_unfitted"]
    for path in tuned.iterdir():
        if path.name != "README.md":
            assert (tmp_path / "o" / "adapter" / path.name).read_bytes() == path.read_bytes()


def test_the_card_says_what_is_left_and_keeps_what_was_said(place, anchor, tuned, source, tmp_path):  # noqa: F811
    theirs = tmp_path / "theirs"
    shutil.copytree(tuned, theirs)
    (theirs / "README.md").write_text("---\nlicense: mit\ntags: [poetry]\n---\n# Mine\n\nIt writes verse.\n")
    (theirs / "optimizer.pt").write_bytes(b"left by a trainer")
    data = ("--source", source, "--target", place.target, *LENGTH)
    done = succeeded(*fit(theirs, anchor, tmp_path / "o", *data))
    _, metadata, text = (tmp_path / "o" / "adapter" / "README.md").read_text().split("---\n", 2)
    wanted = {"license": "mit", "tags": ["poetry", "holdfast"], "base_model": str(place.model), "library_name": "peft"}
    assert yaml.safe_load(metadata) == wanted
    row = json.loads((tmp_path / "o" / "results.json").read_text())["rows"][0]
    for side in ("source", "target"):
        for when in ("before", "unfitted", "after"):
            assert f"{row[f'{side}_{when}']:.4f}" in text
            assert f"{row[f'{side}_{when}']:.4f}" in done.out
    assert text.index("fitted with Holdfast") < text.index("## As it came") < text.index("It writes verse.")
    assert f"`{min(row['factors'], key=row['factors'].get)}`" in text
    assert not (tmp_path / "o" / "adapter" / "optimizer.pt").exists()
    assert "steered by what was measured" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    dearest = max(row["per_layer_unfitted"], key=row["per_layer_unfitted"].get)
    assert dearest in done.out
    assert f"{row['factors'][dearest]:.3f}" in done.out


def test_a_report_shows_it_beside_the_run_that_it_came_from(place, anchor, tuned, source, tmp_path):  # noqa: F811
    succeeded(*fit(tuned, anchor, tmp_path / "o", "--source", source, "--target", place.target, *LENGTH))
    succeeded("report", tuned.parent, tmp_path / "o", "--out", tmp_path / "report.html")
    assert "fit-layers" in (tmp_path / "report.html").read_text()


def test_text_of_the_model_s_own_and_points_of_accuracy(place, anchor, tuned, tmp_path):  # noqa: F811
    options = ("--source", "self", "--target", place.target, "--worth", "target", *LENGTH)
    done = succeeded(*fit(tuned, anchor, tmp_path / "o", *options, "--json", budget="accuracy 0.5"))
    row = done.json["rows"][0]
    assert (row["budget"], row["budget_unit"]) == (0.5, "points")
    assert any("sampled itself" in warning for warning in done.json["warnings"])
    assert row["worths"] != {}
    assert row["source_before"] > 0


def test_a_note_where_the_base_has_another_name(place, anchor, tuned, tmp_path):  # noqa: F811
    shutil.copytree(place.model, tmp_path / "copy")
    (tmp_path / "theirs").mkdir()
    for path in tuned.iterdir():
        shutil.copy(path, tmp_path / "theirs")
    shutil.copytree(tuned, tmp_path / "theirs" / "second")
    done = succeeded(*fit(tmp_path / "theirs", anchor, tmp_path / "o", "--model", tmp_path / "copy"))
    assert f"names {place.model} as its base model, and was fitted on {tmp_path / 'copy'}" in done.err
    assert "further adapters, which were left alone: second" in done.err


REFUSED = {
    "negative": ((), -0.1, ["--budget", "-0.1"]),
    "nothing": ((), 0, ["budget", "a number above 0"]),
    "no budget": ((), "some", ["budget 'some'", "1% (of perplexity)"]),
    "share of a loss": ((), "loss 1%", ["is measured on old data, and none is named", "pass source data"]),
    "accuracy": ((), "accuracy 1", ["is measured on old data"]),
    "no such way": (("--how", "layer"), 0.1, ["no way to fit is called 'layer'", "did you mean layers"]),
    "no such worth": (("--worth", "weight"), 0.1, ["worth", "'length' or 'target'"]),
    "worth of nothing": (("--worth", "target"), 0.1, ["worth=target", "none are named"]),
    "no anchor there": (("--anchor", "nowhere"), 0.1, ["nowhere"]),
    "no model there": (("--model", "./nowhere"), 0.1, ["there is no folder ./nowhere"]),
    "too little data": (("--source", "ONE"), 0.1, ["can't be held out"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense(place, anchor, tuned, tmp_path, out, case):  # noqa: F811
    more, budget, says = REFUSED[case]
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "x"}\n')
    more = [one if option == "ONE" else option for option in more]
    if case == "negative":
        says = ["a budget of -0.1", "a number above 0"]
    refused(*fit(tuned, anchor, out, *more, *LENGTH, budget=budget), says=says)


def test_another_model_s_anchor_or_adapter(place, anchor, tuned, tmp_path, out):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    for name, model in (("alike", make_model(len(tokenizer))), ("wider", make_model(len(tokenizer), width=48))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    model = make_model(len(tokenizer))
    with torch.no_grad():
        model.get_submodule(LAYER).weight.add_(1e-3)
    model.save_pretrained(tmp_path / "alike")
    refused(*fit(tuned, anchor, out, "--model", tmp_path / "alike"), says=["differs from the anchored weight"])
    refused(*fit(tuned, anchor, out, "--model", tmp_path / "wider"), says=["has shape"])
    adapter = get_peft_model(make_model(len(tokenizer), width=48), LoraConfig(target_modules="all-linear"))
    adapter.save_pretrained(tmp_path / "theirs")
    refused(*fit(tmp_path / "theirs", anchor, out, "--model", place.model), says=["does not fit the model"])


def test_what_is_no_plain_lora(place, anchor, tuned, tmp_path, out):  # noqa: F811
    def theirs(name, **settings):
        base = AutoModelForCausalLM.from_pretrained(place.model)
        settings = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings
        get_peft_model(base, LoraConfig(**settings)).save_pretrained(tmp_path / name)
        return fit(tmp_path / name, anchor, out, "--model", place.model)

    refused(*theirs("dora", use_dora=True), says=["DoRA adapter", "magnitudes", "merge_and_unload"])
    refused(*theirs("saved", modules_to_save=["lm_head"]), says=["modules that were trained whole (modules_to_save)"])
    refused(*theirs("bias", bias="all", target_modules=["q_proj"], lora_bias=True), says=["biases"])
    refused(*theirs("embedded", target_modules=["embed_tokens"]), says=["nothing in common"])
    shutil.copytree(tuned, tmp_path / "strange")
    tensors = load_file(tmp_path / "strange" / "adapter_model.safetensors")
    tensors[f"base_model.model.{LAYER}.base_layer.weight"] = torch.zeros(32, 32)
    save_file(tensors, tmp_path / "strange" / "adapter_model.safetensors")
    refused(*fit(tmp_path / "strange", anchor, out), says=["1 tensors that are no LoRA's", "base_layer.weight"])
    shutil.copytree(tuned, tmp_path / "several" / "one")
    refused(*fit(tmp_path / "several", anchor, out), says=["holds several adapters", "several/one"])
    refused(*fit(place.path, anchor, out), says=["adapter_config.json is missing"])
    (tmp_path / "cut").mkdir()
    for path in tuned.iterdir():
        shutil.copy(path, tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused(*fit(tmp_path / "cut", anchor, out), says=["can't be read", "cut off"])


def test_what_moved_at_no_price(place, anchor, whole, tmp_path, out):  # noqa: F811
    shutil.copytree(whole, tmp_path / "normed")
    tensors = load_file(tmp_path / "normed" / "model.safetensors")
    tensors["model.norm.weight"] += 0.1
    save_file(tensors, tmp_path / "normed" / "model.safetensors", metadata={"format": "pt"})
    refused(*fit(tmp_path / "normed", anchor, out), says=["no price for them: model.norm.weight", "norms, biases"])


@pytest.mark.parametrize("kind", ["identity", "absolute", "adapter"])
def test_anchors_that_say_nothing_in_nats(place, tuned, source, tmp_path, out, kind):  # noqa: F811
    folder = tmp_path / "anchor"
    if kind == "adapter":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.model), tuned, is_trainable=True)
        Anchor.estimate(model, [{"input_ids": torch.arange(12)[None]}], space="adapter", progress=False).save(folder)
    else:
        data = () if kind == "identity" else ("--source", place.source)
        succeeded("anchor", "--model", place.model, "--curvature", kind, "--out", folder, *data, *LENGTH)
    says = {"identity": "predicts nothing", "absolute": "size of a move", "adapter": "does not say where it started"}
    refused(*fit(tuned, folder, out, *LENGTH), says=[says[kind]])
    if kind == "identity":
        row = succeeded(*fit(tuned, folder, tmp_path / "o", "--source", source, *LENGTH, "--json")).json["rows"][0]
        assert (row["changed"], row["predicted_forgetting"], row["predicted_unfitted"]) == (True, None, None)


def test_nothing_is_written_over(place, anchor, tuned, tmp_path):  # noqa: F811
    came = files_in(tuned)
    for folder in (tuned, tuned.parent, tuned / "fitted"):
        refused(*fit(tuned, anchor, folder), says=["would write over the adapter that came", "choose another --out"])
        assert files_in(tuned) == came
    other = tmp_path / "other"
    shutil.copytree(tuned.parent, other)
    before = files_in(other)
    refused(*fit(tuned, anchor, other), says=["holds other things", "an earlier fit to replace"])
    (tmp_path / "file").write_text("mine")
    refused(*fit(tuned, anchor, tmp_path / "file"), says=["could not write"])
    assert files_in(other) == before


def test_a_failure_leaves_an_earlier_fit_alone(place, anchor, tuned, tmp_path, monkeypatch):  # noqa: F811
    succeeded(*fit(tuned, anchor, tmp_path / "o"))
    before = files_in(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("holdfast.fit_product.write_card", full)
    refused(*fit(tuned, anchor, tmp_path / "o", budget=BUDGET / 2), says=["could not write", "the disk is full"])
    assert files_in(tmp_path) == before
