"""What a run leaves when it is stopped: no space, no memory, an interrupt, a folder of other things."""

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
from cli_runs import LENGTH, anchor, files_in, out, place, refused, run, seeded, succeeded, tune  # noqa: F401
from safetensors import SafetensorError

from holdfast import training
from holdfast.anchor import Anchor
from holdfast.curvature.kronecker import Kronecker

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
    for folder in (taken, taken / "deeper"):
        refused(*tune(place, folder), says=says)
        refused("anchor", "--model", place.model, "--source", place.source, "--out", folder, *LENGTH, says=says)
        refused("evaluate", "--model", place.model, "--target", place.target, "--out", folder, *LENGTH, says=says)
        refused("demo", "--out", folder, says=says)
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
        patched.setattr("holdfast.tuned.write_card", stop)
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
    folder = tmp_path / "out"
    target = tmp_path / "target.jsonl"
    shutil.copy(place.target, target)
    asked = ("tune", "--model", place.model, "--target", target, "--out", folder, *LENGTH, "--save-steps", 1)
    succeeded(*asked, "--steps", 2)
    before = files_in(folder)
    says = ["started with other settings", "rank was 8, now 4", "training.steps was 2, now 3"]
    message = refused(*asked, "--steps", 3, "--rank", 4, "--resume", says=says)
    assert f"{folder / 'checkpoints' / 'checkpoint-2' / 'recipe.resolved.yaml'} --out {folder} --resume" in message
    lines = target.read_text().splitlines()
    target.write_text("\n".join([json.dumps({"prompt": "9 plus 9?", "completion": "It is 18."}), *lines]) + "\n")
    refused(*asked, "--steps", 2, "--resume", says=["the target data is not what", "a file was changed since"])
    assert files_in(folder) == before


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
