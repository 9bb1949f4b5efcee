"""Bad input: one message with the remedy, a non-zero exit, and nothing half-written."""

import errno
import os
import shutil

import pytest
import torch
from cli_runs import LENGTH, anchor, files_in, out, place, refused, run, seeded, succeeded, tune  # noqa: F401
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


DATA = {  # name and content of a file, further options, what the message says
    "empty": ("a.txt", b" \n", (), ["a.txt is empty", "remedy: check the file"]),
    "not text": ("a.txt", b"caf\xe9", (), ["is not UTF-8 text", "iconv"]),
    "no text column": ("a.csv", b"a,b\n1,2\n", (), ["not clear which column", "it has a, b", "--text-column"]),
    "missing column": ("a.csv", b"body,b\n1,2\n", ("--text-column", "bdy"), ["no column 'bdy'; did you mean 'body'?",
                       "one of its columns: body, b"]),
    "one of a pair": ("a.csv", b"a,b\n1,2\n", ("--prompt-column", "a"), ["no completion column"]),
    "one document": ("a.jsonl", b'{"text": "x"}', (), ["can't be held out", "give more data"]),
    "cut line": ("a.jsonl", b'{"text": "x"}\n{"te', (), ["line 2, column 2: not JSON", "mend or remove the line"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(DATA))
def test_data(place, tmp_path, out, case):  # noqa: F811
    name, content, options, says = DATA[case]
    (tmp_path / name).write_bytes(content)
    refused("tune", "--model", place.model, "--target", tmp_path / name, "--out", out, *LENGTH, *options, says=says)


def test_no_data(place, tmp_path, out, monkeypatch):  # noqa: F811
    asked = ("tune", "--model", place.model, "--out", out, *LENGTH, "--target")
    (tmp_path / "empty").mkdir()
    refused(*asked, tmp_path / "empty", says=["holds no text file: it is empty"])
    refused(*asked, place.path / "taget.jsonl", says=["there is no file or folder", "target.jsonl"])
    refused(*asked, place.target, "--source", place.path / "old.txt", says=["old.txt", "check the name"])
    done = run("evaluate", "--model", place.model)
    assert done.status == 1
    assert "pass --source, --target, or both" in done.err


def damaged(place, folder, how):  # noqa: F811
    """A copy of the model's folder with something wrong."""
    shutil.copytree(place.model, folder)
    weights = folder / "model.safetensors"
    if how == "corrupt":
        weights.write_bytes(weights.read_bytes()[:3000])
    elif how in ("no config", "no weights", "no tokenizer"):
        gone = {"no config": ["config.json"], "no weights": [weights.name], "no tokenizer": ["tokenizer.json"]}[how]
        for name in gone:
            (folder / name).unlink()
    elif how == "foreign tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(place.model)
        tokenizer.add_tokens(["<pad>"])
        tokenizer.save_pretrained(folder)
    else:
        tensors = load_file(weights)
        name = "model.layers.1.mlp.up_proj.weight"
        if how == "missing weight":
            del tensors[name]
        else:
            tensors[name][0, 0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    return folder


MODELS = {
    "corrupt": ["the model in", "could not be loaded", "missing, cut off or damaged", "again"],
    "no config": ["a folder without a model: config.json is missing", "it holds generation_config.json"],
    "no weights": ["no file named model.safetensors", "missing, cut off or damaged"],
    "no tokenizer": ["the tokenizer in", "could not be loaded"],
    "missing weight": ["1 weights of the model", "model.layers.1.mlp.up_proj.weight"],
    "foreign tokenizer": ["gives '<pad>' the id 320", "320 embedding rows", "load this model's tokenizer"],
    "nan": ["target before: the loss is nan", "the model's weights hold NaN"],
}


@pytest.mark.parametrize("how", list(MODELS))
def test_models(place, tmp_path, out, how):  # noqa: F811
    model = damaged(place, tmp_path / "model", how)
    refused("tune", "--model", model, "--target", place.target, "--out", out, *LENGTH, says=MODELS[how])


def test_models_that_are_nowhere(place, out, monkeypatch):  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for command in ("tune", "anchor", "evaluate"):
        data = ("--source", place.source) if command == "anchor" else ("--target", place.target)
        rest = (*data, "--out", out)
        refused(command, "--model", "./nosuch", *rest, says=["there is no folder ./nosuch", "name a model folder"])
        refused(
            command, "--model", "a/b", *rest, says=["there is no folder a/b", "no model 'a/b'", "without a network"]
        )


def test_a_model_of_nan_is_no_source(place, tmp_path, out):  # noqa: F811
    model = damaged(place, tmp_path / "model", "nan")
    asked = ("anchor", "--model", model, "--out", out, *LENGTH, "--source")
    refused(*asked, "self", "--samples", 2, says=["can't be sampled from", "its weights hold NaN"])
    refused(*asked, place.source, says=["is not finite", "the model's weights hold NaN"])


def test_anchors(place, anchor, tmp_path, out):  # noqa: F811
    other = AutoModelForCausalLM.from_pretrained(place.model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 0.01
    shutil.copytree(place.model, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    asked = ("tune", "--target", place.target, "--out", out, *LENGTH)
    refused(*asked, "--model", tmp_path / "other", "--anchor", anchor,
            says=["another model: model.layers.0.mlp.up_proj.weight differs", "holdfast anchor --model"])  # fmt: skip
    refused(*asked, "--model", place.model, "--anchor", tmp_path, says=["is not an anchor: anchor.json is missing"])
    shutil.copytree(anchor, tmp_path / "cut")
    (tmp_path / "cut" / "anchor.safetensors").write_bytes(b"cut")
    refused(*asked, "--model", place.model, "--anchor", tmp_path / "cut", says=["is broken", "truncated or changed"])
    succeeded("anchor", "--model", place.model, "--curvature", "identity", "--targets", "q_proj",
              "--out", tmp_path / "few", *LENGTH)  # fmt: skip
    refused(*asked, "--model", place.model, "--anchor", tmp_path / "few", says=["have no curvature in the anchor"])


def test_targets_that_match_nothing(place, out):  # noqa: F811
    refused(*tune(place, out, "--targets", "q_prj"), says=["'q_prj' match no layer", "'q_prj' is close to: q_proj"])
    refused(*tune(place, out, "--targets", "q_proj,atn"), says=["'atn'", "down_proj"])
    refused("anchor", "--model", place.model, "--source", place.source, "--out", out, *LENGTH, "--targets", "x(",
            says=["not a regular expression"])  # fmt: skip


OPTIONS = {
    "negative strength": (("--anchor", "ANCHOR", "--strength", -1), ["strength: it should be greater than or equal"]),
    "nan": (("--anchor", "ANCHOR", "--damping", "nan"), ["damping: it should be a finite number"]),
    "strength of nothing": (("--strength", 1), ["weigh an anchor, and none is named", "pass --anchor DIR"]),
    "distill without source": (("--distill", 0.3), ["distillation needs --source DATA, or --source self"]),
    "distill without adapter": (
        ("--method", "full", "--source", "self", "--distill", 1, "--set", "samples=4"),
        ["no adapter to switch off", "--set distill_top_k=256"],
    ),
    "unknown method": (("--method", "loar"), ["no tuner is called 'loar'", "did you mean lora"]),
    "unknown key": (("--set", "training.lerning_rate=1"), ["did you mean 'training.learning_rate'?"]),
    "no steps": (("--steps", 0), ["training.steps: at least 1 step, or -1"]),
    "rank": (("--rank", 0), ["rank: it should be greater than or equal to 1 (got 0)"]),
    "too long": (("--length", 4096), ["the model takes at most 128", "--length 128 or less"]),
    "tracker": (("--set", "training.report_to=[nosuch]"), ["nosuch is not supported"]),
    "no model": (("--set", "model=null"), ["model: it should be a valid string"]),
    "recipe that is data": (("DATA",), ["is not YAML", "data is named with --target or --source"]),
    "no checkpoint": (("--resume",), ["no checkpoint to resume from", "start again without --resume"]),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_options(place, anchor, out, case):  # noqa: F811
    options, says = OPTIONS[case]
    options = [{"ANCHOR": anchor, "DATA": place.target}.get(option, option) for option in options]
    refused(*tune(place, out), *options, says=says)


def test_adapters(place, tmp_path):  # noqa: F811
    asked = ("evaluate", "--model", place.model, "--target", place.target, *LENGTH, "--adapter")
    refused(*asked, place.path, says=["is not a PEFT adapter: adapter_config.json is missing", "OUT/adapter"])
    succeeded(*tune(place, tmp_path / "out", "--targets", "q_proj"))
    path = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.0" in name}, path)
    refused(*asked, tmp_path / "out" / "adapter", says=["does not fit the model", "missing adapter keys"])
    save_file({name: tensor[:, :4].contiguous() for name, tensor in tensors.items()}, path)
    refused(*asked, tmp_path / "out" / "adapter", says=["does not fit the model", "another base model"])


def test_usage():
    for arguments, says in (
        (("tune", "--bogus"), "No such option: --bogus"),
        (("bogus",), "No such command 'bogus'"),
        (("tune", "--steps", "many"), "valid integer"),
        (("demo", "--seeds", "0"), "--seeds"),
        (("anchor", "--model", "x"), "--out"),
    ):
        done = run(*arguments)
        assert (done.status, done.out) == (2, "")
        assert says in done.err
        assert "Traceback" not in done.err


def test_loss_that_is_not_finite(place, out):  # noqa: F811
    says = ["the training loss is", "at step", "lower --learning-rate"]
    refused(*tune(place, out, "--set", "training.warmup=0", "--save-steps", 1000), "--learning-rate", 1e30, says=says)


def test_weights_that_are_not_finite_at_the_end(place, tmp_path):  # noqa: F811
    """The last update is the one that breaks them: no loss has seen it, and nothing may be written."""
    before = seeded(tmp_path / "out")
    refused(*tune(place, tmp_path / "out", "--set", "training.warmup=0"), "--learning-rate", 1e30, "--steps", 1,
            says=["target after: the loss is", "the learning rate is too high"])  # fmt: skip
    assert files_in(tmp_path / "out") == before
