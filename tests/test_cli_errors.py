"""Bad input: one message with the remedy, a non-zero exit, and nothing half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import peft.peft_model
import pytest
import torch
from cli_runs import LENGTH, anchor, files_in, place, refused, run, succeeded, tune  # noqa: F401
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast import training
from holdfast.anchor import Anchor
from holdfast.curvature.kronecker import Kronecker

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def out(tmp_path):
    """A folder that no failed command may leave anything in."""
    yield tmp_path / "new" / "out"
    assert not (tmp_path / "new").exists()


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


ANCHORING = {
    "fisher": (("--source", "SOURCE", "--fisher", "nonsense"), ["--fisher nonsense", "one of sampled, data"]),
    "no source": ((), ["--curvature kronecker is measured on source data", "--source self"]),
    "needless source": (("--source", "SOURCE", "--curvature", "identity"), ["needs no source data", "leave --source"]),
    "unknown curvature": (
        ("--source", "SOURCE", "--curvature", "kron"),
        ["no curvature is called 'kron'", "kronecker"],
    ),
    "fraction": (("--source", "SOURCE", "--fraction", 2), ["--fraction 2.0", "at most 1"]),
    "dtype": (("--source", "SOURCE", "--dtype", "int4"), ["--dtype int4", "one of auto, float32"]),
}


@pytest.mark.parametrize("case", list(ANCHORING))
def test_anchoring(place, out, case):  # noqa: F811
    options, says = ANCHORING[case]
    options = [place.source if option == "SOURCE" else option for option in options]
    refused("anchor", "--model", place.model, "--out", out, *LENGTH, *options, says=says)


def test_adapters(place, tmp_path):  # noqa: F811
    asked = ("evaluate", "--model", place.model, "--target", place.target, *LENGTH, "--adapter")
    refused(*asked, place.model, says=["is not a PEFT adapter: adapter_config.json is missing", "OUT/adapter"])
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


def seeded(out):
    """What an earlier run left, for a failed one to leave alone."""
    (out / "adapter").mkdir(parents=True)
    for name in ("adapter/README.md", "results.json", "report.html", "log.jsonl", "recipe.resolved.yaml"):
        (out / name).write_text(f"{name} of an earlier run, trained with Holdfast")
    return files_in(out)


def test_no_space_for_results(place, anchor, tmp_path, monkeypatch):  # noqa: F811
    before = seeded(tmp_path / "out")

    def full(descriptor):
        raise FULL

    asked = tune(place, tmp_path / "out")
    monkeypatch.setattr(os, "fsync", full)
    refused(*asked, says=["could not write", "No space left", "the disk is full", "is untouched"])
    assert files_in(tmp_path / "out") == before
    copied = shutil.copytree(anchor, tmp_path / "anchor")
    kept = files_in(copied)
    refused("anchor", "--model", place.model, "--source", place.source, "--out", copied, *LENGTH,
            says=["could not write", "the disk is full"])  # fmt: skip
    assert files_in(copied) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anchor", "out"]


@pytest.mark.parametrize("what", ["adapter", "optimizer"])
def test_no_space_for_a_checkpoint(place, tmp_path, monkeypatch, what):  # noqa: F811
    before = seeded(tmp_path / "out")

    def full(*arguments, **options):
        if what == "adapter":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/1: file write failed")

    monkeypatch.setattr(*((peft.peft_model, "safe_save_file") if what == "adapter" else (torch, "save")), full)
    refused(*tune(place, tmp_path / "out", "--save-steps", 2), says=["could not write", "checkpoints", "disk is full"])
    assert files_in(tmp_path / "out") == before


@pytest.mark.parametrize(("size", "more"), [("160k", ("--save-steps", 1)), ("40k", ())])
def test_a_disk_that_is_really_full(place, tmp_path, size, more):  # noqa: F811
    """Full at a checkpoint, full at the adapter."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting takes root")
    try:
        refused(*tune(place, disk / "out"), *more, says=["could not write", "the disk is full", "remedy: free"])
        assert files_in(disk) == {}
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_file_in_the_place_of_a_folder(place, tmp_path):  # noqa: F811
    taken = tmp_path / "taken"
    taken.write_text("mine")
    says = ["could not write", "a file stands where a folder should", "choose another --out"]
    for out in (taken, taken / "deeper"):
        refused(*tune(place, out), says=says)
        refused("anchor", "--model", place.model, "--source", place.source, "--out", out, *LENGTH, says=says)
        refused("evaluate", "--model", place.model, "--target", place.target, "--out", out, *LENGTH, says=says)
        refused("demo", "--out", out, says=says)
    assert taken.read_text() == "mine"


def test_folders_of_other_things_are_not_replaced(place, tmp_path):  # noqa: F811
    (tmp_path / "thesis.tex").write_text("mine")
    refused("anchor", "--model", place.model, "--source", place.source, "--out", tmp_path, *LENGTH,
            says=["holds other files than an anchor's: thesis.tex", "choose another --out"])  # fmt: skip
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / "thesis.tex").write_text("mine")
    refused(*tune(place, tmp_path / "out"), says=["thesis.tex", "choose another --out"])
    assert files_in(tmp_path) == {"thesis.tex": b"mine", "out/adapter/thesis.tex": b"mine"}


def test_interrupts(place, anchor, tmp_path, monkeypatch):  # noqa: F811
    """Ctrl-C while an adapter is being written, and while an anchor is measured."""

    def stop(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)  # a job in the background starts with the signal ignored
    before = seeded(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.tune.write_card", stop)
        message = refused(
            *tune(place, tmp_path / "out"), status=130, says=["interrupted (SIGINT)", "nothing half-written"]
        )
    assert "start again; --save-steps N writes a checkpoint" in message
    assert files_in(tmp_path / "out") == before
    copied = shutil.copytree(anchor, tmp_path / "anchor")
    kept = files_in(copied)
    with monkeypatch.context() as patched:
        patched.setattr(Kronecker, "from_sums", stop)
        refused("anchor", "--model", place.model, "--source", place.source, "--out", copied, *LENGTH,
                status=130, says=["interrupted (SIGINT)", "run the command again"])  # fmt: skip
    assert files_in(copied) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anchor", "out"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_resuming_something_else(place, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    target = tmp_path / "target.jsonl"
    shutil.copy(place.target, target)
    asked = ("tune", "--model", place.model, "--target", target, "--out", out, *LENGTH, "--save-steps", 1)
    succeeded(*asked, "--steps", 2)
    before = files_in(out)
    says = ["started with other settings", "rank was 8, now 4", "training.steps was 2, now 3"]
    message = refused(*asked, "--steps", 3, "--rank", 4, "--resume", says=says)
    assert f"{out / 'checkpoints' / 'checkpoint-2' / 'recipe.resolved.yaml'} --out {out} --resume" in message
    lines = target.read_text().splitlines()
    target.write_text("\n".join([json.dumps({"prompt": "9 plus 9?", "completion": "It is 18."}), *lines]) + "\n")
    refused(*asked, "--steps", 2, "--resume", says=["the target data is not what", "a file was changed since"])
    assert files_in(out) == before


def test_too_little_memory(place, out, monkeypatch):  # noqa: F811
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(training._Trainer, "training_step", exhausted)
    refused(*tune(place, out), says=["out of memory", "lower --batch-size or --length"])


def test_a_bug_keeps_its_traceback(place, out, monkeypatch):  # noqa: F811
    def broken(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr(Anchor, "load", broken)
    with pytest.raises(KeyError, match="a bug"):
        run(*tune(place, out, "--anchor", Path("x")))
