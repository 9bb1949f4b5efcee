"""Sums of SIFT adapters, on a model and as folders."""

import copy
import json

import pytest
import torch
from cli_runs import Place, make_model, place, refused, succeeded  # noqa: F401
from peft import LoraConfig, PeftModel
from sift_models import llama, sifted, token_batches
from transformers import LlamaForCausalLM

from holdfast.errors import HoldfastError
from holdfast.sift import SiftConfig
from holdfast.sift.composing import add_weighted
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import select
from holdfast.targets import base_layers

KINDS = {"few": {"density": 0.1}, "rows": {"density": 0.3, "scope": "row"}, "start": {"decay_to": "start"},
         "biased": {"target_modules": ["q_proj", "k_proj"], "score": "magnitude"}}  # fmt: skip


def train(model, adapter, seed):
    """Other entries for each seed, moved at random."""
    model.set_adapter(adapter)
    select(model, token_batches(seed=seed), adapter=adapter)
    generator = torch.Generator().manual_seed(seed)
    for one in entries_of(model, adapter).values():
        with torch.no_grad():
            noise = torch.randn(len(one.entries.values), generator=generator, dtype=torch.float64)
            one.entries.values.add_(0.1 * noise)


def test_a_second_adapter_on_all_linear_layers_is_on_the_same_ones():
    model = sifted(llama(), "a")
    model.add_adapter("b", SiftConfig(density=0.5))
    assert list(entries_of(model, "b")) == list(entries_of(model, "a"))


def pair(dtype=torch.float64, first="few", second="few"):
    """Two trained adapters, "a" and "b", on one model."""
    model = sifted(llama().to(dtype), "a", **KINDS[first])
    model.add_adapter("b", SiftConfig(**{"density": 0.1, **KINDS[second]}))
    train(model, "a", 1)
    train(model, "b", 2)
    return model


def shifts(model, adapter):
    """Canonical layer -> weight with the adapter minus weight without, dense."""
    model.set_adapter(adapter)
    active = {name: layer.weight.detach().clone() for name, layer in base_layers(model).items()}
    with model.disable_adapter():
        return {name: active[name] - layer.weight.detach() for name, layer in base_layers(model).items()}


@pytest.mark.parametrize(("first", "second"), [("few", "few"), ("few", "rows"), ("start", "few"), ("biased", "start")])
def test_a_sum_is_the_sum_of_dense_shifts(first, second):
    model = pair(first=first, second=second)
    parts = [("a", 0.5), ("b", -2.0), ("a", 1.0)]
    sizes = add_weighted(model, parts, "sum")
    a, b = shifts(model, "a"), shifts(model, "b")
    for name, found in shifts(model, "sum").items():
        torch.testing.assert_close(found, 1.5 * a[name] - 2.0 * b[name], msg=name)
    supports = [entries_of(model, adapter) for adapter in ("a", "b")]
    for name, count in sizes.items():
        union = {i for one in supports if name in one for i in one[name].entries.indices.tolist()}
        assert count == len(union)
        assert entries_of(model, "sum")[name].entries.indices.tolist() == sorted(union)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["few", "start"])
def test_what_was_added_is_taken_away_to_the_bit(dtype, kind):
    model = pair(dtype, kind, kind)
    add_weighted(model, [("a", 1.0), ("b", 1.0)], "both")
    add_weighted(model, [("both", 1.0), ("b", -1.0)], "back")
    add_weighted(model, [("a", 1.0), ("b", 1.0), ("b", -1.0)], "at once")
    a = {name: one.entries for name, one in entries_of(model, "a").items()}
    for name, one in entries_of(model, "at once").items():
        at = torch.searchsorted(one.entries.indices, a[name].indices)
        torch.testing.assert_close(one.entries.values[at], a[name].values, rtol=0, atol=0)
    wanted, found = shifts(model, "a"), shifts(model, "back")
    for name, shift in shifts(model, "at once").items():
        torch.testing.assert_close(shift, wanted[name], rtol=0, atol=0)
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=2e-7 if dtype == torch.float32 else 0)


def test_what_is_active_stays_and_the_sum_trains_on():
    model = pair().eval()
    model.set_adapter("a")
    before = model(**token_batches(1)[0]).logits
    add_weighted(model, [("a", 1.0), ("b", 1.0)], "sum")
    torch.testing.assert_close(model(**token_batches(1)[0]).logits, before, rtol=0, atol=0)
    model.set_adapter("sum")
    model(**token_batches(1)[0]).loss.backward()
    assert all(one.entries.values.grad is not None for one in entries_of(model, "sum").values())


def test_an_adapter_alone_is_itself_and_survives_its_file(tmp_path):
    model = pair(torch.float32, "biased", "few")
    add_weighted(model, [("a", 1.0), ("b", 1.0)], "sum")
    model.set_adapter("sum")
    logits = model.eval()(**token_batches(1)[0]).logits
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = PeftModel.from_pretrained(llama().float(), tmp_path / "sum").eval()
    torch.testing.assert_close(again(**token_batches(1)[0]).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("parts", "name", "says"),
    [
        ([], "sum", "no adapters to combine"),
        ([("a", 1.0), ("c", 1.0)], "sum", "no adapter is called 'c'"),
        ([("a", 1.0)], "b", "an adapter is called 'b' already"),
        ([("a", float("nan"))], "sum", "the weight of 'a' is nan"),
        ([("new", 1.0)], "sum", "in adapter 'new' are not chosen yet"),
        ([("whole", 1.0)], "sum", "holds whole modules beside its entries: norm"),
    ],
)
def test_what_has_no_sum_is_refused(parts, name, says):
    model = pair()
    model.add_adapter("new", SiftConfig())
    model.add_adapter("whole", SiftConfig(modules_to_save=["norm"], score="random"))
    with pytest.raises(HoldfastError, match=says):
        add_weighted(model, parts, name)


def test_lora_is_not_combined_so():
    from peft import get_peft_model

    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(HoldfastError, match="is no SIFT adapter: LoraConfig"):
        add_weighted(model, [("default", 1.0)], "sum")


@pytest.fixture(scope="module")
def folders(place: Place):  # noqa: F811
    """Two trained adapters of the tiny model of the command line's tests, as folders."""
    found = []
    for seed in (1, 2):
        model = sifted(LlamaForCausalLM.from_pretrained(place.model), density=0.05)
        train(model, "default", seed)
        model.save_pretrained(place.path / f"sift-{seed}", save_embedding_layers=False)
        found.append(place.path / f"sift-{seed}")
    return found


def test_folders_of_other_adapters_are_not_combined(place, folders, tmp_path):  # noqa: F811
    from peft import get_peft_model

    model = get_peft_model(LlamaForCausalLM.from_pretrained(place.model), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "low")
    parts = ("combine", "--adapter", folders[0], "--adapter", tmp_path / "low")
    refused(*parts, "--out", tmp_path / "out", says=["is a LORA adapter, and only SIFT adapters combine"])


def test_pefts_name_for_sums_leads_to_ours():
    with pytest.raises(HoldfastError, match="holdfast combine"):
        pair().add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")


def effective(model, folder):
    """The weights with the adapter in them."""
    base = LlamaForCausalLM.from_pretrained(model)
    return PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()


def test_folders_are_combined_on_the_command_line(place, folders, tmp_path):  # noqa: F811
    a, b = folders
    add = ("combine", "--adapter", a, "--adapter", b)
    done = succeeded(*add, "--out", tmp_path / "both", "--json").json
    assert done["adapters"] == [{"adapter": str(a), "weight": 1.0}, {"adapter": str(b), "weight": 1.0}]
    both, base = effective(place.model, tmp_path / "both"), LlamaForCausalLM.from_pretrained(place.model).state_dict()
    one, other = effective(place.model, a), effective(place.model, b)
    for name, tensor in both.items():
        torch.testing.assert_close(tensor - base[name], one[name] + other[name] - 2 * base[name], rtol=0, atol=1e-6)
    assert f"{done['entries']:,} entries" in succeeded(*add, "--out", tmp_path / "both").err  # replaces its own
    back = ("--adapter", tmp_path / "both", "--weight", 1, "--adapter", b, "--weight", -1)
    succeeded("combine", *back, "--out", tmp_path / "back")
    for name, tensor in effective(place.model, tmp_path / "back").items():
        torch.testing.assert_close(tensor, one[name], rtol=0, atol=1e-7)
    assert "-1 x" in (tmp_path / "back" / "README.md").read_text()


def test_a_sum_of_adapters_of_different_bases_is_refused(place, folders, tmp_path):  # noqa: F811
    torch.manual_seed(7)
    other = make_model(len(json.loads((place.model / "tokenizer.json").read_text())["model"]["vocab"]) + 2)
    other = copy.deepcopy(other)
    other.resize_token_embeddings(LlamaForCausalLM.from_pretrained(place.model).config.vocab_size)
    strange = sifted(other, density=0.05)
    train(strange, "default", 3)
    strange.save_pretrained(tmp_path / "strange", save_embedding_layers=False)
    parts = ("combine", "--adapter", folders[0], "--adapter", tmp_path / "strange")
    refused(*parts, "--out", tmp_path / "out", says=["were trained on another base"])
    assert not (tmp_path / "out").exists()


def test_what_lies_in_the_way_is_left_alone(place, folders, tmp_path):  # noqa: F811
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    add = ("combine", "--adapter", folders[0], "--out")
    refused(*add, tmp_path / "mine", says=["it holds other things: notes.txt"])
    refused(*add, folders[0], says=["would write over an adapter that came"])
    refused(*add, tmp_path / "out", "--weight", 1, "--weight", 2, says=["1 adapters and 2 weights"])
    refused("combine", "--adapter", tmp_path, "--out", tmp_path / "out", says=["is not a PEFT adapter"])
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
