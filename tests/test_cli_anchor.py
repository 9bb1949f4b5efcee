"""`holdfast anchor` from the command line: options, recipes, storage and merging, end to end and refused."""

import json

import pytest
import torch
import yaml
from cli_runs import LENGTH, SENTENCES, files_in, out, place, refused, run, succeeded  # noqa: F401
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.estimate import STORAGES

SMALL = ("--targets", "q_proj,v_proj", *LENGTH)


def asked(place, out, *more):  # noqa: F811
    """The arguments of a quick measurement."""
    return ("anchor", "--model", place.model, "--source", place.source, "--out", out, *SMALL, *more)


def facts(folder):
    """What `anchor.json` says."""
    return json.loads((folder / "anchor.json").read_text())


def tensors(folder):
    """Bytes of the tensors."""
    return (folder / "anchor.safetensors").stat().st_size


def alike(one, other, **tolerance):
    """Two anchor folders hold the same numbers."""
    first, second = (Anchor.load(folder) for folder in (one, other))
    assert (list(first.curvatures), first.items) == (list(second.curvatures), second.items)
    for name, curvature in first.curvatures.items():
        assert_close(second.curvatures[name].tensors(), curvature.tensors(), **tolerance)


def test_options_reach_the_anchor(place, tmp_path):  # noqa: F811
    options = ("--fisher", "sampled", "--draws", 2, "--per", "sequence", "--max-items", 100, "--seed", 3,
               "--set", "products=bfloat16")  # fmt: skip
    done = succeeded(*asked(place, tmp_path / "a", *options, "--json"))
    known = facts(tmp_path / "a")
    assert (known["facts"]["draws"], known["facts"]["per"], known["facts"]["seed"]) == (2, "sequence", 3)
    assert known["facts"]["products"] == "bfloat16"
    assert known["facts"]["recipe"]["source"]["path"] == str(place.source)
    assert 100 <= known["items"] < 100 + 8 * LENGTH[1]
    known_facts = {
        "curvature",
        "layers",
        "items",
        "item",
        "agreement",
        "captured",
        "seconds",
        "megabytes",
        "source",
        "out",
    }
    assert set(done.json) == known_facts
    assert (done.json["layers"], done.json["items"]) == (4, known["items"])


def test_what_is_read_is_of_all_the_data(place, tmp_path):  # noqa: F811
    """A limit takes a sample of the file, not its beginning: another seed, other data."""
    options = ("--max-items", 60, "--batch-size", 1, "--fisher", "data", "--seed")
    short = [asked(place, tmp_path / f"{seed}", *options, seed) for seed in (0, 1)]
    for one in short:
        succeeded(*one)
    assert len({facts(tmp_path / name)["facts"]["data_sha256"] for name in ("0", "1")}) == 2
    succeeded(*short[0][:-1], 0, "--out", tmp_path / "again")
    alike(tmp_path / "0", tmp_path / "again", rtol=0, atol=0)


def test_a_recipe_is_the_same_run(place, tmp_path):  # noqa: F811
    succeeded(*asked(place, tmp_path / "flags", "--max-items", 100, "--fisher", "data"))
    recipe = tmp_path / "recipe.yaml"
    values = {"model": str(place.model), "source": str(place.source), "targets": "q_proj,v_proj", "length": 999}
    recipe.write_text(yaml.safe_dump(values))
    succeeded(
        "anchor", recipe, "--out", tmp_path / "recipe", *LENGTH, "--set", "max_items=100", "--set", "fisher=data"
    )
    alike(tmp_path / "flags", tmp_path / "recipe", rtol=0, atol=0)
    again = tmp_path / "again.yaml"  # what an anchor has on record is a recipe
    again.write_text(yaml.safe_dump(facts(tmp_path / "recipe")["facts"]["recipe"]))
    succeeded("anchor", again, "--out", tmp_path / "again")
    alike(tmp_path / "flags", tmp_path / "again", rtol=0, atol=0)


def test_storage_in_half_the_space(place, tmp_path):  # noqa: F811
    for storage in STORAGES:
        succeeded(*asked(place, tmp_path / storage, "--storage", storage))
    assert_close(tensors(tmp_path / "bfloat16") / tensors(tmp_path / "float32"), 0.6, rtol=0.2, atol=0)  # with names
    one, other = (Anchor.load(tmp_path / storage) for storage in STORAGES)
    for name, curvature in one.curvatures.items():
        moves = torch.ones(curvature.shape)
        prices = [(moves * c.apply(moves)).sum() for c in (curvature, other.curvatures[name])]
        assert_close(prices[1], prices[0], rtol=2**-6, atol=0)


@pytest.fixture(scope="module")
def parts(place):  # noqa: F811
    """Anchors of two parts of the pairs, and of all; each pair is a sequence of its own, whatever is read with it."""
    lines = place.target.read_text().splitlines(keepends=True)
    for name, some in {"a": lines[:10], "b": lines[10:], "all": lines}.items():
        (place.path / f"{name}.jsonl").write_text("".join(some))
        succeeded("anchor", "--model", place.model, "--source", place.path / f"{name}.jsonl", "--fisher", "data",
                  "--out", place.path / "parts" / name, *SMALL)  # fmt: skip
    return place.path / "parts"


def test_merging(parts, tmp_path):
    done = succeeded("anchor", "--merge", parts / "a", parts / "b", "--out", tmp_path / "c", "--json")
    assert done.json["items"] == Anchor.load(parts / "all").items
    assert [part["items"] for part in done.json["parts"]] == [Anchor.load(parts / name).items for name in "ab"]
    alike(parts / "all", tmp_path / "c", rtol=1e-4, atol=1e-7)
    assert "of 2 runs" in succeeded("anchor", "--merge", parts / "a", parts / "b", "--out", tmp_path / "c").err


def test_merging_into_half_the_space(parts, tmp_path):
    succeeded("anchor", "--merge", parts / "a", parts / "b", "--out", tmp_path / "c", "--storage", "bfloat16")
    assert facts(tmp_path / "c")["dtype"] == ["bfloat16", "float32"]


def test_merging_what_does_not_add_up(place, parts, tmp_path, out):  # noqa: F811
    refused("anchor", "--merge", parts / "a", parts / "a", "--out", out,
            says=["measured on the same data with the same seed", "count it twice"])  # fmt: skip
    refused("anchor", "--merge", parts / "a", place.path, "--out", out, says=["is not an anchor"])
    refused("anchor", "--merge", parts / "a", parts / "b", "--out", out, "--storage", "int8",
            says=["--storage int8", "float32, bfloat16"])  # fmt: skip
    succeeded(*asked(place, tmp_path / "sampled"))
    refused("anchor", "--merge", parts / "a", tmp_path / "sampled", "--out", out,
            says=["fisher is 'data' in one, 'sampled' in another"])  # fmt: skip


def test_tasks_one_after_another(parts, tmp_path, out):  # noqa: F811
    asked_for = ("anchor", "--accumulate", parts / "a", parts / "b", "--decay", 0.5)
    done = succeeded(*asked_for, "--out", tmp_path / "c")
    assert "of 2 tasks" in done.err
    assert "one Kronecker product with the same partial traces" in done.err
    known = facts(tmp_path / "c")["facts"]
    assert [task["share"] for task in known["tasks"]] == [0.5, 1.0]
    old, new, both = (Anchor.load(folder) for folder in (parts / "a", parts / "b", tmp_path / "c"))
    for name, curvature in both.curvatures.items():
        traces = [c.curvatures[name].inputs.diagonal().sum() * c.curvatures[name].gradients.diagonal().sum()
                  for c in (old, new)]  # fmt: skip
        found = curvature.inputs.diagonal().sum() * curvature.gradients.diagonal().sum()
        assert_close(found, 0.5 * traces[0] + traces[1], rtol=1e-4, atol=0)
    again = succeeded("anchor", "--accumulate", tmp_path / "c", parts / "b", "--out", tmp_path / "d", "--json").json
    assert len(again["tasks"]) == 3
    for arguments, says in (
        (("--accumulate", parts / "a"), "the anchor of the tasks before and the new task's, not 1"),
        (("--accumulate", parts / "a", parts / "b", "--merge"), "has no use for --accumulate"),
        (("--merge", parts / "a", parts / "b", "--decay", 2), "has no use for --decay"),
        (("--decay", 2), "it weighs the tasks before a new one"),
    ):
        failed = run("anchor", *arguments, "--out", out)
        assert failed.status == 2
        assert says in " ".join(failed.err.replace("│", " ").split())


REFUSED = {
    "fisher": (("--fisher", "nonsense"), ["fisher: it should be 'sampled', 'data' or 'exact' (got 'nonsense')"]),
    "draws": (("--draws", 2, "--fisher", "data"), ["draws=2 draws labels from the model, and fisher is 'data'"]),
    "no draws": (("--draws", 0), ["draws: it should be greater than or equal to 1"]),
    "per": (("--per", "word"), ["per: it should be 'token' or 'sequence'"]),
    "positions of sequences": (("--per", "sequence", "--fraction", 0.5), ["fraction leaves some out"]),
    "no source": (("--source", None), ["--curvature kronecker is measured on source data", "--source self"]),
    "needless source": (("--curvature", "identity"), ["needs no source data", "leave --source out"]),
    "unknown curvature": (("--curvature", "kron"), ["no curvature is called 'kron'", "kronecker"]),
    "fraction": (("--fraction", 2), ["fraction: it should be less than or equal to 1 (got 2.0)"]),
    "dtype": (("--dtype", "int4"), ["dtype: it should be 'auto', 'float32'", "(got 'int4')"]),
    "storage": (("--storage", "int8"), ["storage: it should be 'float32' or 'bfloat16'"]),
    "a band in half": (
        ("--storage", "bfloat16", "--curvature", "tridiagonal"),
        ["tridiagonal would not stay positive semi-definite", "store it in float32"],
    ),
    "no items": (("--max-items", 0), ["max_items: it should be greater than or equal to 1"]),
    "unknown key": (("--set", "curvatur=diagonal"), ["unknown key 'curvatur' (did you mean 'curvature'?)"]),
    "exact": (("--fisher", "exact"), ["fisher='exact' takes a backward pass per class", "fisher='sampled'"]),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refusals(place, out, case):  # noqa: F811
    options, says = REFUSED[case]
    if options == ("--source", None):
        refused("anchor", "--model", place.model, "--out", out, *SMALL, says=says)
    else:
        refused(*asked(place, out, *options), says=says)


def test_what_is_not_measured_is_not_stopped(place, tmp_path, out):  # noqa: F811
    plain = ("anchor", "--model", place.model, "--curvature", "identity", *SMALL)
    succeeded(*plain, "--out", tmp_path / "a")
    refused(*plain, "--out", out, "--until", 0.1, says=["'identity' is not measured, so until can't be meant"])


def test_usage(place, tmp_path):  # noqa: F811
    for arguments, says in (
        (("--model", "x"), "--out"),
        (("a.yaml", "b.yaml", "--out", "c"), "one at most, not 2"),
        (("--merge", "a", "--out", "c"), "two anchors or more, not 1"),
        (("--merge", "a", "b"), "--out"),
        (("--merge", "a", "b", "--out", "c", "--fisher", "data", "--max-items", 3), "--fisher, --max-items"),
        (("--merge", "a", "b", "--out", "c", "--source", "x"), "--source"),
        (("--merge", "a", "b", "--out", "c", "--set", "seed=1"), "--set"),
    ):
        done = run("anchor", *arguments)
        assert (done.status, done.out) == (2, "")
        assert says in " ".join(done.err.split())
    refused("anchor", "--source", place.source, "--out", tmp_path / "x", says=["no model was named", "pass --model"])
    refused("anchor", tmp_path / "no.yaml", "--out", tmp_path / "x", says=["no.yaml can't be read"])
    assert files_in(tmp_path) == {}
