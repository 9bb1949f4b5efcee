"""`holdfast analyse sparsity` and `pac-bayes`: from the command line to the files."""

import json
import math

import pytest
import torch
from cli_runs import files_in, out, place, refused, run, succeeded, tune  # noqa: F401
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from holdfast.analysis.figure import Line, Panel
from holdfast.analysis.interactive import plots
from holdfast.analysis.pac_bayes import documents
from holdfast.analysis.pac_bayes.documents import read_documents
from holdfast.sift import SiftConfig
from holdfast.sift.selection import select

SMALL = ("--length", 24)


def sparsity(place, out, *more):  # noqa: F811
    return ("analyse", "sparsity", "--model", place.model, "--target", place.target, "--source", place.source,
            "--out", out, "--examples", 4, *SMALL, *more)  # fmt: skip


def pac_bayes(place, out, *more):  # noqa: F811
    tuned = () if "--adapter" in more else ("--steps", 4)  # a finished adapter is not tuned
    return ("analyse", "pac-bayes", "--model", place.model, "--target", place.target, "--out", out,
            *tuned, "--draws", 40, "--seed", 3, *SMALL, *more)  # fmt: skip


@pytest.fixture(scope="module")
def adapter(place, tmp_path_factory):  # noqa: F811
    """A LoRA of the tiny model."""
    folder = tmp_path_factory.mktemp("tuned")
    succeeded(*tune(place, folder))
    return folder / "adapter"


def test_sparsity_leaves_figures_a_page_and_a_picture(place, adapter, tmp_path):  # noqa: F811
    done = succeeded(*sparsity(place, tmp_path, "--examples", 1, "--steps", 4, "--adapter", adapter, "--json"))
    assert sorted(files_in(tmp_path)) == ["sparsity.html", "sparsity.json", "sparsity.svg"]
    content = json.loads((tmp_path / "sparsity.json").read_text())
    assert done.json == content
    figures = content["figures"]
    assert list(figures["conditions"]) == ["pre-trained", "random", "tuned"]
    assert [one["examples"] for one in figures["conditions"]["tuned"]["by_examples"]] == [1, 4]
    assert {step["step"] for step in figures["persistence"]["training"]["other examples"]} == {0, 1, 2, 3, 4}
    at_start = figures["persistence"]["training"]["the same examples"][0]
    assert at_start["recall"] == pytest.approx(at_start["own"])
    assert at_start["jaccard"] == 1.0
    for name in ("does not hold here", "Gaussian", "energy", "Jaccard"):
        assert name in content["words"]


def test_the_adapter_is_what_is_measured_as_tuned(place, adapter, tmp_path):  # noqa: F811
    alone = succeeded(*sparsity(place, tmp_path / "a", "--steps", 0, "--pretrained-only", "--json")).json["figures"]
    both = succeeded(*sparsity(place, tmp_path / "b", "--steps", 0, "--adapter", adapter, "--json")).json["figures"]
    assert alone["conditions"]["pre-trained"] == both["conditions"]["pre-trained"]  # the model itself stays bare
    assert both["conditions"]["tuned"]["tensors"].keys() == both["conditions"]["pre-trained"]["tensors"].keys()
    assert both["conditions"]["tuned"]["by_examples"] != both["conditions"]["pre-trained"]["by_examples"]
    assert both["persistence"]["training"] == {}


def test_sparsity_says_what_it_lacks(place, out):  # noqa: F811
    refused(*sparsity(place, out, "--examples", 5000), says=["rows to take gradients of", "--examples"])


@pytest.mark.parametrize("prior", ["identity", "kronecker", "diagonal"])
def test_pac_bayes_leaves_a_certificate(place, tmp_path, prior):  # noqa: F811
    done = succeeded(*pac_bayes(place, tmp_path, "--json", "--prior", prior))
    assert sorted(files_in(tmp_path)) == ["pac-bayes.html", "pac-bayes.json", "pac-bayes.svg"]
    figures = done.json["figures"]
    headline = figures["headline"]
    assert (headline["space"], headline["prior"], headline["n"]) == ("what is trained", "first half", 18)
    assert sum(headline["parts"].values()) == pytest.approx(headline["value"])
    assert headline["risk"] <= headline["sampled"] <= headline["value"] <= 1
    weights = figures["spaces"]["all weights"]["priors"]
    assert weights["random"]["divergence"] > weights["pre-trained"]["divergence"] > 0
    assert all(one["vacuous"] == (one["value"] >= 0.9995) for one in weights.values())
    for name in ("documents", "n is 18", "vacuous", "random centre"):
        assert name in done.json["words"]


def test_the_same_seed_gives_the_same_certificate(place, tmp_path):  # noqa: F811
    first, second = (
        succeeded(*pac_bayes(place, tmp_path / name, "--json", "--loss", "nats", "--method", "full")).json["figures"]
        for name in "ab"
    )
    assert first == second
    assert first["headline"]["most"] == 8.0
    assert first["headline"]["risk"] > 1  # nats, not a share


@pytest.mark.parametrize("method", [("sift", "--parameters", 100), ("prefix",), ("ia3",)])
def test_any_method_can_be_certified(place, tmp_path, method):  # noqa: F811
    figures = succeeded(*pac_bayes(place, tmp_path, "--json", "--method", *method)).json["figures"]
    assert figures["headline"]["divergence"] >= 0
    assert figures["divergence_at_all_documents"] > 0
    assert ("all weights" in figures["spaces"]) == (method[0] != "prefix")  # which moves no weight of a layer
    if "--parameters" in method:
        assert 90 <= figures["spaces"]["what is trained"]["dimensions"] <= 100
        assert figures["headline"]["support"] == 0  # chosen on the first half
        assert figures["choice_on_the_second_half"] > 100


def test_a_finished_adapter_is_certified_over_all_weights(place, adapter, tmp_path):  # noqa: F811
    done = succeeded(*pac_bayes(place, tmp_path, "--json", "--adapter", adapter)).json["figures"]
    assert (done["headline"]["space"], done["headline"]["prior"]) == ("all weights", "pre-trained")
    assert done["headline"]["divergence"] > 0
    curved = succeeded(*pac_bayes(place, tmp_path, "--json", "--adapter", adapter, "--prior", "kronecker")).json
    assert curved["figures"]["headline"]["divergence"] != done["headline"]["divergence"]
    assert "their shape is the kronecker curvature" in curved["words"]
    assert "the prior's centre is the pre-trained weights" in curved["words"]
    held = succeeded(*pac_bayes(place, tmp_path, "--json", "--adapter", adapter, "--prior-adapter", adapter)).json
    assert held["figures"]["headline"]["prior"] == "first half"
    assert held["figures"]["headline"]["divergence"] == 0.0


def test_the_default_documents_are_the_same_each_time_and_without_prose(monkeypatch):
    monkeypatch.setattr(documents, "MODULES", 12)
    first, second = read_documents(None), read_documents(None)
    assert first == second
    assert len(first) == 12
    assert all('"""' not in text and documents.SHORTEST <= len(text) <= documents.LONGEST for text in first.items[:3])


def test_pac_bayes_counts_documents_not_tokens(place, out):  # noqa: F811
    refused(*pac_bayes(place, out, "--target", place.source), says=["is one document", "a row per document"])


def test_pac_bayes_refuses_what_makes_no_sense(place, out, tmp_path):  # noqa: F811
    refused(*pac_bayes(place, out, "--prior-adapter", tmp_path), says=["--prior-adapter without --adapter"])
    refused(*pac_bayes(place, out, "--adapter", tmp_path, "--rank", 4), says=["finished adapter is not tuned"])
    refused(*pac_bayes(place, out, "--delta", 1.5), says=["delta is 1.5"])
    refused(*pac_bayes(place, out, "--prior", "kroneker"), says=["kronecker"])
    refused(*pac_bayes(place, out, "--prior", "tracekron", "--loss", "acuracy"), says=["error or nats"])
    refused(*pac_bayes(place, out, "--share", 0.9), says=["too few"])


def test_the_first_plot_of_a_page_brings_the_script():
    marks = [Line("line", [1, 2], [3, 4])]
    drawn = plots([Panel("narrow", "x", "y", marks), Panel("wide", "x", "y", marks, wide=True)])
    assert [panel.title for panel, _ in drawn] == ["wide", "narrow"]
    assert [len(text) > 10**6 for _, text in drawn] == [True, False]


def test_help_has_an_example():
    for name in ("sparsity", "pac-bayes"):
        assert "Example: holdfast analyse" in run("analyse", name, "--help").out


def test_a_sparse_adapter_pays_for_its_choice_on_its_own_entries(place, tmp_path):  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(place.model)
    sifted = get_peft_model(model, SiftConfig(target_modules=["q_proj"], density=0.1, score="random"))
    select(sifted)
    with torch.no_grad():
        for name, parameter in sifted.named_parameters():
            if "sift_" in name:
                parameter += 0.01
    sifted.save_pretrained(tmp_path / "adapter")
    done = succeeded(*pac_bayes(place, tmp_path / "out", "--json", "--adapter", tmp_path / "adapter")).json
    own = done["figures"]["spaces"]["what is trained"]["priors"]["pre-trained"]
    assert done["figures"]["spaces"]["what is trained"]["dimensions"] == 2 * 102  # of 32 x 32 in two layers
    assert own["support"] == pytest.approx(2 * math.log(math.comb(1024, 102)))
    assert own["divergence"] > own["support"]
    assert "for the choice of the entries" in done["words"]
