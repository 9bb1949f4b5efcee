"""Running `holdfast` inside the test process, on a tiny model and tiny data saved to disk."""

import contextlib
import io
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from holdfast.cli import main

SENTENCES = [
    "The cat sat on the mat and looked at the dog.",
    "A dog ran through the garden after the red ball.",
    "Rain fell on the roof of the old house all night.",
    "She read a long book about the history of ships.",
]
LENGTH = ("--length", 48)
SMALL_SELF = ("--source", "self", "--set", "samples=8", "--set", "sample_length=16")


@dataclass
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """Standard output, which is JSON and nothing else."""
        return json.loads(self.out)


def run(*arguments):
    """`holdfast ARGUMENTS` as `main` runs it; what it changes in other libraries is put back."""
    out, err = io.StringIO(), io.StringIO()
    argv, last = sys.argv, logging.lastResort.level
    verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    sys.argv = ["holdfast", *map(str, arguments)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = argv
        transformers_logging.set_verbosity(verbosity[0])
        hub_logging.set_verbosity(verbosity[1])
        logging.lastResort.setLevel(last)
    return Done(status, out.getvalue(), err.getvalue())


def succeeded(*arguments):
    """The command's outcome, after checking that it ended well and quietly."""
    done = run(*arguments)
    assert done.status == 0, done.err
    assert "Warning" not in done.err
    assert "Traceback" not in done.err
    return done


def refused(*arguments, says, status=1):
    """The message of a command that ends with one clear message and nothing else."""
    done = run(*arguments)
    assert done.status == status, done.err
    assert done.out == ""
    message = done.err[done.err.index("holdfast: ") :]
    missing = [part for part in says if part not in message]
    assert missing == [], message
    assert message.count("holdfast: ") == 1, message
    assert "Traceback" not in done.err
    return message


@dataclass(frozen=True)
class Place:
    """A folder with a model and data of every kind."""

    path: Path
    model: Path
    source: Path
    target: Path


def make_place(path):
    """Save a two-layer Llama with a tokenizer of its own, a source and a target."""
    tokenizer = make_tokenizer(SENTENCES)
    torch.manual_seed(0)
    make_model(len(tokenizer)).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "source.txt").write_text("\n".join(SENTENCES * 24) + "\n")
    pairs = [{"prompt": f"{i} plus {j}?", "completion": f"It is {i + j}."} for i in range(6) for j in range(6)]
    (path / "target.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return Place(path, path / "model", path / "source.txt", path / "target.jsonl")


def make_tokenizer(sentences):
    """Byte-level BPE, as `scripts/pretrain.py` makes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=128
    )


def make_model(vocabulary, width=32):
    """Random weights: what matters here is files and messages."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The folder, made once."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def anchor(place):
    """A Kronecker anchor of the tiny model."""
    out = place.path / "anchor"
    succeeded("anchor", "--model", place.model, "--source", place.source, "--out", out, *LENGTH)
    return out


def tune(place, out, *more):
    """The arguments of a short run."""
    return ("tune", "--model", place.model, "--target", place.target, "--out", out, "--steps", 4,
            "--learning-rate", 1e-2, *LENGTH, *more)  # fmt: skip


def files_in(folder):
    """Every file below, temporary ones included, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def out(tmp_path):
    """A folder that no failed command may leave anything in."""
    yield tmp_path / "new" / "out"
    assert not (tmp_path / "new").exists()


def seeded(out):
    """What an earlier run left, for a failed one to leave alone."""
    (out / "adapter").mkdir(parents=True)
    for name in ("adapter/README.md", "results.json", "report.html", "log.jsonl", "recipe.resolved.yaml"):
        (out / name).write_text(f"{name} of an earlier run, trained with Holdfast")
    return files_in(out)
