"""What the plan says before any time is spent, against published sizes and against what is then there."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from networks import NETWORKS
from safetensors import safe_open

from holdfast import catalogue, plan
from holdfast.anchor import Anchor
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.language_model import load_model
from holdfast.layers import require_kind
from holdfast.memory import bytes_of, text_of
from holdfast.models import shipped
from holdfast.plan.choosing import WIDEST
from holdfast.plan.plan import suits
from holdfast.plan.shapes import Shapes, empty_model, of_config
from holdfast.plan.table import spanned
from holdfast.statistics import sharing_in
from holdfast.targets import select

COUNTS = ("examples",)  # numbers of what was kept
KINDS = catalogue.names("curvature")
WIDE = Shapes({"up": LayerSize(40, 12), "down": LayerSize(12, 40), "last": LayerSize(12, 40)}, {})


@cache
def choices(name: str) -> list[plan.Choice]:
    """What each structure takes of a known model."""
    return plan.choices(of_config(name))


def gigabytes(name: str, storage: str, kind: str = "kronecker") -> dict[str, float]:
    """Choice of all layers -> its bytes."""
    (found,) = [c for c in choices(name) if (c.kind, c.storage) == (kind, storage)]
    return {field: getattr(found.bytes, field) / 1e9 for field in ("used", "stored", "stored_bfloat16")}


@pytest.mark.parametrize(
    ("name", "storage", "wanted"),
    [
        ("llama-3.2-1b", "full", {"used": 14.5, "stored": 7.3, "stored_bfloat16": 3.6}),
        ("llama-3.2-3b", "full", {"used": 29.1, "stored": 14.6, "stored_bfloat16": 7.3}),
        ("llama-3.1-8b", "full", {"used": 92.1, "stored": 46.0, "stored_bfloat16": 23.0}),
        ("qwen2.5-7b", "full", {"used": 129.3, "stored": 64.6, "stored_bfloat16": 32.3}),
        ("llama-3.2-3b", "blocks:1024", {"stored_bfloat16": 1.3}),
        ("llama-3.1-8b", "blocks:2048", {"stored_bfloat16": 4.5}),
        ("llama-3.2-3b", "low-rank:512", {"stored_bfloat16": 1.3}),
        ("llama-3.2-3b", "low-rank:256", {"stored_bfloat16": 0.65}),
        ("llama-3.1-8b", "low-rank:256", {"stored_bfloat16": 1.15}),
        ("llama-3.1-8b", "low-rank:64", {"stored_bfloat16": 0.29}),
    ],
)
def test_published_sizes(name: str, storage: str, wanted: dict[str, float]) -> None:
    """Of all seven projections of each layer, layers with one input counted once; rounded as they were printed."""
    found = gigabytes(name, storage)
    assert {field: found[field] for field in wanted} == pytest.approx(wanted, abs=0.06, rel=0.004)


@pytest.mark.parametrize(("name", "wanted"), [("llama-3.2-3b", 5.6), ("llama-3.1-8b", 14.0)])
def test_published_sizes_of_the_diagonal(name: str, wanted: float) -> None:
    assert gigabytes(name, "", "diagonal")["stored_bfloat16"] == pytest.approx(wanted, abs=0.06)


def tiny() -> Shapes:
    """The layers of the tiny Llama."""
    network = NETWORKS["llama"]
    model, batch = network.build(), network.batches(2)[0]
    layers = select(model, network.targets)
    sizes = {name: LayerSize(*require_kind(name, module).size(module)) for name, module in layers.items()}
    return Shapes(sizes, sharing_in(layers, lambda: model(**batch)))


@pytest.mark.parametrize("storage", ["full", "blocks:3", "low-rank:2", "diagonal"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if catalogue.curvature(kind).statistics()])
def test_the_plan_is_what_is_held(kind: str, storage: str) -> None:
    """Every tensor once; counts, scales and what fills blocks up are no part of the plan."""
    network, reading = NETWORKS["llama"], Reading(keep=5)
    if not suits(plan.make(tiny(), catalogue.curvature(kind), reading), storage):
        with pytest.raises(HoldfastError, match="nothing that curvature"):
            plan.make(tiny(), catalogue.curvature(kind), reading, storage=storage)
        return
    keep = {"keep": 5} if catalogue.curvature(kind).keeps else {}
    anchor = Anchor.estimate(
        network.build(), network.batches(2), curvature=kind, storage=storage, per="token", progress=False, **keep
    )
    held = {}
    for curvature in anchor.curvatures.values():
        tensors = curvature.tensors().items()
        held |= {t.data_ptr(): t.numel() for name, t in tensors if t.numel() > 2 and name not in COUNTS}
    told = plan.make(tiny(), catalogue.curvature(kind), reading, storage=storage, each=8)
    assert told.total.used == sum(held.values())
    assert told.facts() == anchor.facts["plan"] | {"bytes": told.bytes}  # without a budget no batch shows who shares


@pytest.mark.parametrize(
    ("kind", "storage"),
    [("kronecker", "full"), ("kronecker", "blocks:60"), ("kronecker", "low-rank:8"), ("diagonal", "full")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plan_is_what_is_stored(kind: str, storage: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, source = load_model(str(shipped()), "float32"), [{"input_ids": torch.arange(60).reshape(2, 30)}]
    targets = r"model\.layers\.[01]\..*"
    anchor = Anchor.estimate(model, source, curvature=kind, targets=targets, storage=storage, progress=False)
    anchor.save(tmp_path / "anchor", dtype)
    with safe_open(tmp_path / "anchor" / "anchor.safetensors", framework="pt") as file:
        held = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    aside = (".rows", ".ridge", ".size", ".full.diagonal", ".blocks.diagonal")  # counts; diagonals beside roots
    told = plan.from_config(str(shipped()), targets, kind, storage=storage).total.stored
    assert told == sum(count for name, count in held.items() if not name.replace("/", ".").endswith(aside))


def test_a_budget_is_kept_and_used_up() -> None:
    """Down to one more factor in full than fits: 28 of 3072 and 8192 numbers cost 37.7 MB and more each."""
    made = plan.from_config("llama-3.2-3b", memory="4GiB")
    assert 0.98 * 4 * 1024**3 < made.bytes <= 4 * 1024**3
    found = {(size.inputs.name, size.gradients.name) for size in made.sizes.values()}
    assert found == {(i, g) for i in ("full", "low-rank:256") for g in ("full", "low-rank:256")}
    roomy = plan.from_config("llama-3.2-3b", memory="29.2GB")
    assert {(size.inputs.name, size.gradients.name) for size in roomy.sizes.values()} == {("full", "full")}


def test_the_widest_go_first_and_the_last_of_them() -> None:
    full = 3 * (12**2 + 40**2)
    made = plan.make(WIDE, catalogue.curvature("tracekron"), memory=4 * (full - 1))
    stored = {name: (size.inputs.name, size.gradients.name) for name, size in made.sizes.items()}
    assert stored == {"up": ("full", "full"), "down": ("full", "full"), "last": ("low-rank:16", "full")}
    assert made.total.used == full - 40**2 + 40 * 17
    least = plan.make(WIDE, catalogue.curvature("tracekron"), memory=4 * 3 * (12 + 40))
    assert {(size.inputs.name, size.gradients.name) for size in least.sizes.values()} == {("diagonal", "diagonal")}


def test_layers_with_one_input_hold_it_once_and_are_stored_alike() -> None:
    shapes = of_config("llama-3.2-3b", ["q_proj", "k_proj", "v_proj"])
    assert len(set(shapes.leaders.values())) == 28
    made = plan.make(shapes, catalogue.curvature("kronecker"), memory="1GB")
    for name, leader in shapes.leaders.items():
        assert made.sizes[name].inputs == made.sizes[leader].inputs
    alone = plan.make(Shapes(shapes.sizes, {}), catalogue.curvature("kronecker"))
    once = plan.make(shapes, catalogue.curvature("kronecker"))
    assert alone.total.used - once.total.used == 2 * 28 * 3072**2
    unknown = plan.make(Shapes(shapes.sizes, {}), catalogue.curvature("kronecker"), memory="1GB")
    assert len({size.inputs for size in unknown.sizes.values()}) == 1  # of one width, so that any may share


def test_a_budget_that_nothing_fits_is_refused_with_what_would() -> None:
    with pytest.raises(HoldfastError, match=r"at least 5.0 MB \(5046272 bytes\).* budget is 1.0 MB"):
        plan.from_config("llama-3.2-3b", memory="1MB")
    with pytest.raises(HoldfastError, match="'kronecker'") as refused:
        plan.from_config("llama-3.2-3b", kind="diagonal", memory="6MB")
    assert "rank-one" not in refused.value.remedy
    with pytest.raises(HoldfastError, match="at least") as refused:
        plan.from_config("llama-3.2-3b", kind="eigen", memory="2GB")
    assert "'samples'" in refused.value.remedy
    assert "joint" not in refused.value.remedy  # it keeps whole sequences: hundreds of gigabytes
    assert plan.from_config("llama-3.2-3b", memory=5_046_272).bytes == 5_046_272
    with pytest.raises(HoldfastError, match="at least"):
        plan.from_config("llama-3.2-3b", memory="1GB", storage="blocks:2048")


def test_eigen_turns_blocks_where_bases_are_too_large() -> None:
    made = plan.from_config("llama-3.2-3b", kind="eigen", memory="30GB")
    assert {size.gradients.name for size in made.sizes.values()} == {"full", "blocks:2048"}
    assert made.total.measured > made.total.used  # the factors are there while the moments are measured


def test_a_vocabulary_is_not_squared_and_that_is_said() -> None:
    made = plan.from_config("llama-3.2-3b", ["lm_head", "o_proj"])
    assert made.sizes["lm_head"].gradients.name == "diagonal"
    assert made.sizes["model.layers.0.self_attn.o_proj"].gradients.name == "full"
    (note,) = made.notes
    assert note.startswith("lm_head: its gradients have 128256 numbers, more than 30000")
    assert WIDEST < 30_522  # BERT's vocabulary


def test_embeddings_count_their_indices_only() -> None:
    made = plan.from_config("llama-3.2-3b", ["embed_tokens"])
    assert made.total.used == 128_256 + 3072**2


def test_rows_put_layers_of_one_form_together() -> None:
    made = plan.table(plan.from_config("llama-3.2-3b", memory="4GiB"))
    assert sum(row.count for row in made.rows) == 196
    assert sum(row.bytes.used for row in made.rows) == made.total.used
    first = made.rows[0]
    assert (first.layers, first.out, first.inn) == ("model.layers.0-13.self_attn.q_proj", 3072, 3072)
    assert (first.inputs, first.gradients, first.shares) == ("full", "full", False)
    assert made.rows[1].shares
    plain = plan.table(plan.from_config("llama-3.2-3b", kind="diagonal"))
    assert {(row.inputs, row.gradients) for row in plain.rows} == {("", "")}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.0.b", "a.1.b", "a.2.b", "a.5.b"], "a.0-2,5.b"),
        (["a.0.b.3", "a.0.b.4"], "a.0.b.3-4"),
        (["fc1"], "fc1"),
        (["h.7.fc1"], "h.7.fc1"),
        (["h.7.fc1", "h.9.fc1"], "h.7,9.fc1"),
    ],
)
def test_spans_of_names(names: list[str], wanted: str) -> None:
    assert spanned(names) == wanted


def test_choices_hold_every_kind() -> None:
    found = plan.choices(WIDE)
    assert {choice.kind for choice in found} == set(KINDS)
    assert {choice.storage for choice in found if choice.kind == "rank-one"} == {""}
    assert "full" in {choice.storage for choice in found if choice.kind == "kronecker"}


@pytest.mark.parametrize(
    ("written", "size"), [("4GiB", 4 * 1024**3), ("500MB", 500_000_000), ("1.5 kb", 1500), (77, 77), ("77", 77)]
)
def test_amounts_of_memory(written: int | str, size: int) -> None:
    assert bytes_of(written) == size


@pytest.mark.parametrize("written", ["", "GiB", "4 gallons", "-3GB", "0", 0, -5, "4GiB RAM"])
def test_what_is_no_amount_is_refused(written: int | str) -> None:
    with pytest.raises(HoldfastError, match="no amount of memory"):
        bytes_of(written)


def test_amounts_for_people() -> None:
    sizes = (7_281_304_576, 648_372_992, 999_600, 12, 1_500)
    assert [text_of(size) for size in sizes] == ["7.3 GB", "648 MB", "1.0 MB", "12 B", "1.5 KB"]


def test_a_configuration_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes((shipped() / "config.json").read_bytes())
    made = plan.from_config(str(tmp_path))
    assert made.total.used == 4 * (8 * 128**2 + 3 * 384**2)

    def unreachable(name: str) -> None:
        raise OSError(f"{name} is not a local folder")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(HoldfastError, match=r"llama-3\.2-3 is not a local folder") as refused:
        plan.from_config("llama-3.2-3")
    assert "did you mean llama-3.2-3b" in refused.value.remedy


def test_no_weight_is_made_of_a_configuration() -> None:
    assert {parameter.device.type for parameter in empty_model("llama-3.1-8b").parameters()} == {"meta"}


def test_blocks_between_neighbours_that_are_left_out_are_told() -> None:
    whole = plan.from_config("llama-3.2-3b", kind="tridiagonal")
    assert whole.notes == ()
    less = plan.from_config("llama-3.2-3b", kind="tridiagonal", memory="30GB")
    (note,) = less.notes
    assert "of 195 blocks between neighbouring layers are left out" in note
    none = {one.storage for one in plan.choices(of_config("llama-3.2-3b")) if one.kind == "tridiagonal"}
    assert none == {"full"}  # in smaller sides it would be Kronecker under another name
