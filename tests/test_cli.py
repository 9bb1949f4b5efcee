"""Every command from its arguments to its files."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cli_runs import LENGTH, SENTENCES, SMALL_SELF, anchor, files_in, place, run, succeeded, tune  # noqa: F401
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from holdfast import Anchor, catalogue, demo, watching
from holdfast.evaluation import mean_loss
from holdfast.recipe import DataSettings
from holdfast.sides import read_side

ROW = {  # of results.json: design of the format, version 1
    "method", "penalty", "strength", "seed", "source_before", "source_after", "target_before", "target_after",
    "predicted_forgetting", "seconds", "peak_memory_mb", "trainable_parameters",
}  # fmt: skip
LOSSES = ("source_before", "source_after", "target_before", "target_after")
SAME = 1e-6  # nats; the same sums in the same order


@pytest.fixture(scope="module")
def tuned(place, anchor):  # noqa: F811
    """An anchored run with checkpoints and a log, and what it printed."""
    out = place.path / "tuned"
    held = ("--anchor", anchor, "--source", place.source, "--save-steps", 2)
    return out, succeeded(*tune(place, out, *held, "--set", "training.log_steps=3", "--json"))


@pytest.mark.parametrize("source", ["file", "self", "none"])
def test_anchor(place, tmp_path, source):  # noqa: F811
    chosen = {
        "file": ("--source", place.source),
        "self": ("--source", "self", "--samples", 4, "--targets", "q_proj, v_proj", "--fisher", "data"),
        "none": ("--curvature", "identity"),
    }[source]
    done = succeeded("anchor", "--model", place.model, "--out", tmp_path / "a", *LENGTH, *chosen, "--json")
    assert sorted(files_in(tmp_path)) == ["a/anchor.json", "a/anchor.safetensors"]
    loaded = Anchor.load(tmp_path / "a")
    loaded.check(AutoModelForCausalLM.from_pretrained(place.model))
    assert done.json["layers"] == len(loaded.curvatures) == (4 if source == "self" else 14)
    assert done.json["items"] == loaded.items
    assert (loaded.items > 0) == (source != "none")
    assert loaded.facts["base_model"] == str(place.model)


def test_tune_leaves_what_the_format_says(tuned):
    out, done = tuned
    assert {path.name for path in out.iterdir()} == {
        "adapter", "checkpoints", "log.jsonl", "recipe.resolved.yaml", "report.html", "results.json",
    }  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert done.json == results
    assert results["schema"] == 1
    (row,) = results["rows"]
    assert set(row) >= ROW
    assert (row["method"], row["penalty"], row["strength"], row["seed"]) == ("lora", "kronecker", 1.0, 0)
    assert all(0 < row[key] < 10 for key in LOSSES)
    assert row["target_after"] < row["target_before"]
    assert row["predicted_forgetting"] > 0
    assert row["trainable_parameters"] == 8704
    assert {"torch", "transformers", "peft"} < set(results["versions"])
    assert results["machine"]["cores"] == os.cpu_count()
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [2, 3, 4]  # a save, every third, the end
    assert all({"loss", "learning_rate", "penalty", "predicted_forgetting"} <= set(line) for line in logged)


def test_stock_peft_loads_the_adapter(tuned, place):  # noqa: F811
    out, done = tuned
    base = AutoModelForCausalLM.from_pretrained(place.model)
    model = PeftModel.from_pretrained(base, out / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    for side, path in (("target", place.target), ("source", place.source)):
        rows = read_side(DataSettings(path=str(path)), tokenizer, 48, 0.05).held_out
        assert mean_loss(model, rows).nats == pytest.approx(done.json["rows"][0][f"{side}_after"], abs=SAME)


def test_the_card_says_what_was_learned_and_kept(tuned):
    out, done = tuned
    _, metadata, text = (out / "adapter" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata)["tags"] == ["holdfast", "lora", "kronecker"]
    row = done.json["rows"][0]
    for key in LOSSES:
        assert f"{row[key]:.4f}" in text
        assert f"{math.exp(row[key]):.2f}" in text
    assert "at strength 1.0" in text
    assert "column" in text  # what was read of the data


def test_the_resolved_recipe_runs_again_to_the_same_numbers(tuned, tmp_path):
    out, done = tuned
    again = succeeded("tune", out / "recipe.resolved.yaml", "--out", tmp_path / "again", "--json").json
    for key in (*LOSSES, "predicted_forgetting"):
        assert again["rows"][0][key] == done.json["rows"][0][key]
    first, second = (files_in(folder / "adapter") for folder in (out, tmp_path / "again"))
    assert first["adapter_model.safetensors"] == second["adapter_model.safetensors"]
    assert (out / "recipe.resolved.yaml").read_text() == (tmp_path / "again" / "recipe.resolved.yaml").read_text()


def test_the_report_is_self_contained(tuned):
    out, _ = tuned
    page = (out / "report.html").read_text()
    assert "Kronecker" in page
    assert not [tag for tag in ("<link", "<img", "<iframe", 'src="http', "@import") if tag in page]


def test_the_terminal_shows_both_sides(place, tmp_path):  # noqa: F811
    done = succeeded(*tune(place, tmp_path / "out", "--source", place.source))
    assert "lora without holding on; losses in nats per token" in done.out
    assert "source (old data)" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "sequences held out to measure on" in done.err
    assert f"Adapter, results.json and report.html are in {tmp_path / 'out'}" in done.err


WAYS = {
    "plain": ((), "none", None),
    "function": ((*SMALL_SELF, "--distill", 0.3), "distill-self", 0.3),
    "both": (("--anchor", "ANCHOR", "--strength", 2, *SMALL_SELF, "--distill", 0.3), "kronecker+distill-self", 2.0),
    "full": (("--method", "full", "--targets", "q_proj", "--anchor", "ANCHOR", "--damping", 0.1), "kronecker", 1.0),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_ways_of_holding_on(place, anchor, tmp_path, way):  # noqa: F811
    options, penalty, strength = WAYS[way]
    options = [anchor if option == "ANCHOR" else option for option in options]
    results = succeeded(*tune(place, tmp_path, *options, "--json")).json
    (row,) = results["rows"]
    assert (row["penalty"], row["strength"]) == (penalty, strength)
    assert row["target_after"] < row["target_before"]
    assert (row["source_after"] is not None) == ("--source" in options)
    assert (row["predicted_forgetting"] is not None) == (way != "plain")
    assert len(results["warnings"]) == 1  # on what forgetting was measured, or that it was not
    assert (tmp_path / ("model" if way == "full" else "adapter") / "README.md").is_file()
    if way == "full":
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_another_method_in_the_same_folder_leaves_no_stale_result(place, tmp_path):  # noqa: F811
    succeeded(*tune(place, tmp_path))
    assert (tmp_path / "adapter").is_dir()
    done = succeeded(*tune(place, tmp_path, "--method", "full", "--targets", "q_proj"))
    assert "The tuned model, results.json and report.html are in" in done.err
    assert not (tmp_path / "adapter").exists()
    whole = succeeded("evaluate", "--model", place.model, "--adapter", tmp_path / "model", "--source", place.source,
                      *LENGTH, "--json").json["rows"][0]  # fmt: skip
    assert whole["method"] == "model"
    assert whole["source_after"] != whole["source_before"]


def test_a_model_alone_has_no_before_and_after(place):  # noqa: F811
    shown = succeeded("evaluate", "--model", place.model, "--source", place.source, *LENGTH).out
    assert "perplexity" in shown
    assert "change" not in shown
    assert "target" not in shown


def test_every_kind_of_data(place, tmp_path):  # noqa: F811
    (tmp_path / "folder").mkdir()
    for number, sentence in enumerate(SENTENCES * 3):
        (tmp_path / "folder" / f"{number}.txt").write_text(f"{number}: {sentence}\n")
    (tmp_path / "t [1].csv").write_text("id,body\n" + "".join(f"{i},{i} {s}\n" for i, s in enumerate(SENTENCES * 3)))
    kinds = {
        "text": (place.source,),
        "folder": (tmp_path / "folder",),
        "csv": (tmp_path / "t [1].csv", "--text-column", "body"),
        "pairs": (place.target, "--prompt-column", "prompt", "--completion-column", "completion"),
    }
    for kind, (path, *columns) in kinds.items():
        done = succeeded(
            "tune", "--model", place.model, "--target", path, *columns, *LENGTH, "--steps", 1, "--out", tmp_path / kind
        )
        assert f"target: {path}: " in done.err  # brackets and all
    described = json.loads((tmp_path / "csv" / "results.json").read_text())["target"]["description"]
    assert described.startswith(f"{tmp_path / 't [1].csv'}: 12 texts (column 'body')")


def test_rows_that_are_left_out_are_told(place, tmp_path):  # noqa: F811
    pairs = [{"prompt": f"{i}?", "completion": "no " * (60 if i == 0 else 1 + i % 3)} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = succeeded("tune", "--model", place.model, "--target", tmp_path / "pairs.jsonl", "--out", tmp_path / "out",
                     "--steps", 1, *LENGTH)  # fmt: skip
    assert "note: " in done.err
    assert "1 left out" in done.err
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["warnings"]
    assert [note for note in kept if "1 left out" in note] != []


def test_evaluate(tuned, place, tmp_path):  # noqa: F811
    out, _ = tuned
    asked = ("evaluate", "--model", place.model, "--source", place.source, "--target", place.target, *LENGTH)
    base = succeeded(*asked, "--json").json["rows"][0]
    adapted = succeeded(*asked, "--adapter", out / "adapter", "--out", tmp_path, "--json")
    assert json.loads((tmp_path / "results.json").read_text()) == adapted.json
    row = adapted.json["rows"][0]
    assert set(row) >= ROW
    for side, path in (("source", place.source), ("target", place.target)):
        assert base[f"{side}_after"] == base[f"{side}_before"] == row[f"{side}_before"]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.model), out / "adapter")
        rows = read_side(DataSettings(path=str(path)), AutoTokenizer.from_pretrained(place.model), 48).rows
        assert row[f"{side}_after"] == pytest.approx(mean_loss(model, rows).nats, abs=SAME)
    one = succeeded("evaluate", "--model", place.model, "--target", place.target, *LENGTH, "--max-items", 50)
    assert "base model; losses in nats per token" in one.out


def test_methods():
    entries = succeeded("methods", "--json").json
    for room in catalogue.ROOMS:
        assert [entry["name"] for entry in entries if entry["room"] == room] == catalogue.names(room)
    assert all(entry["summary"] for entry in entries)
    assert "kronecker" in succeeded("methods").out


def test_a_recipe_with_options_beside_it(place, tmp_path):  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {place.model}\ntarget: {place.target}\nlength: 48\nrank: 4\n"
        "training: {steps: 9, learning_rate: 2e-3, clip: 0.5}\n"
    )
    beside = ("--steps", 1, "--rank", 2, "--targets", "q_proj, v_proj", "--set", "training.clip=0.25")
    done = succeeded("tune", recipe, *beside, "--set", "seed=3", "--out", tmp_path / "out", "--json")
    settings = yaml.safe_load((tmp_path / "out" / "recipe.resolved.yaml").read_text())
    assert settings == done.json["settings"]
    assert (settings["rank"], settings["seed"], settings["targets"]) == (2, 3, ["q_proj", "v_proj"])
    training_part = settings["training"]
    assert (training_part["steps"], training_part["learning_rate"], training_part["clip"]) == (1, 2e-3, 0.25)


def test_demo(tmp_path, monkeypatch):
    common = demo.settings
    monkeypatch.setattr(demo, "MEASURED", 2)
    monkeypatch.setattr(demo, "TRAINED", 32)
    monkeypatch.setattr(demo, "USUAL", [*demo.USUAL[:1], demo.USUAL[-1]])
    monkeypatch.setattr(demo, "settings", lambda steps: common(steps).model_copy(update={"source_sequences": 4}))
    monkeypatch.setattr(demo, "PROMPTS", {"source": "[/b] [bold]", "target": "x[i]"})  # no markup to the terminal
    done = succeeded("demo", "--steps", 2, "--processes", 1, "--out", tmp_path / "out")
    assert sorted(files_in(tmp_path)) == ["out/recipe.resolved.yaml", "out/report.html", "out/results.json"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["penalty"] for row in results["rows"]] == ["none", demo.USUAL[-1].label]
    assert all(set(row) >= ROW for row in results["rows"])
    assert "'[/b] [bold]'" in done.err
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("when", ["training", "saving"])
def test_resumed_runs_end_as_uninterrupted_ones(place, anchor, tuned, tmp_path, monkeypatch, when):  # noqa: F811
    held = ("--anchor", anchor, *SMALL_SELF, "--distill", 0.3, "--save-steps", 1, "--json")
    whole = tmp_path / "whole"
    reference = succeeded(*tune(place, whole, *held)).json["rows"][0]
    out = tmp_path / "out"
    (out / "adapter").mkdir(parents=True)
    (out / "adapter" / "README.md").write_text("trained with Holdfast, by an earlier run")
    with monkeypatch.context() as patched:
        _stop_at(patched, 3, when)
        stopped = run(*tune(place, out, *held))
    assert stopped.status == 130
    assert stopped.out == ""
    assert "holdfast: interrupted (SIGINT)" in stopped.err
    assert "--resume goes on from step 2" in stopped.err
    left = files_in(out)
    assert left["adapter/README.md"] == b"trained with Holdfast, by an earlier run"
    assert {name.split("/")[1] for name in left if name.startswith("checkpoints")} == {"checkpoint-1", "checkpoint-2"}
    assert not [name for name in left if name in ("results.json", "report.html") or "/." in name]
    again = succeeded(*tune(place, out, *held, "--resume"))
    assert "going on from step 2" in again.err
    for key in (*LOSSES, "predicted_forgetting"):
        assert again.json["rows"][0][key] == reference[key]
    mine, theirs = files_in(out), files_in(whole)
    assert mine["adapter/adapter_model.safetensors"] == theirs["adapter/adapter_model.safetensors"]
    assert [json.loads(line)["loss"] for line in mine["log.jsonl"].splitlines()] == [
        json.loads(line)["loss"] for line in theirs["log.jsonl"].splitlines()
    ]
    assert set(mine) == set(theirs)


def _stop_at(patched, step, when):
    """Ctrl-C at a step, before or in the middle of its checkpoint."""
    if when == "training":
        begin = watching.Watch.on_step_begin

        def on_step_begin(self, args, state, control, **more):
            begin(self, args, state, control, **more)
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)

        patched.setattr(watching.Watch, "on_step_begin", on_step_begin)
        return
    save = Trainer._save_optimizer_and_scheduler

    def cut(self, folder):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        save(self, folder)

    patched.setattr(Trainer, "_save_optimizer_and_scheduler", cut)


def test_a_killed_save_and_an_older_run_are_not_resumed_from(place, tuned, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    options = tune(place, out, "--save-steps", 1)
    (out / "checkpoints" / "checkpoint-90").mkdir(parents=True)
    (out / "checkpoints" / "checkpoint-90" / "sealed.json").write_text("{}")  # whole, but of a longer run
    succeeded(*options)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-4"}
    (out / "checkpoints" / "checkpoint-4" / "sealed.json").unlink()  # as a power cut leaves it
    assert "going on from step 3" in succeeded(*options, "--resume").err


def test_the_program_itself(place, tmp_path):  # noqa: F811
    """Start-up time, and what a process of its own does when it is stopped."""
    program = Path(sys.executable).with_name("holdfast")
    before = os.times()
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, env={**os.environ})
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert "tune" in shown.stdout
    assert spent < 0.6  # seconds of processor time
    asked = [str(part) for part in tune(place, tmp_path / "out", "--steps", 100000, "--save-steps", 1)]
    process = subprocess.Popen(
        [program, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_one_thread()
    )
    _wait_for(lambda: (tmp_path / "out" / "checkpoints" / "checkpoint-2" / "sealed.json").exists(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert out == ""
    assert err.count("holdfast: interrupted (SIGTERM)") == 1
    assert "--resume goes on from step" in err
    assert "Traceback" not in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoints", "log.partial.jsonl"}


def _one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _wait_for(happened, process, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys; sys.argv = ['holdfast', 'tune', '--help']\n"
        "from holdfast.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
