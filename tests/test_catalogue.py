"""The catalogue finds what lies in the rooms, and what lies there wrongly fails a law."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from laws import LAWS, is_positive_semidefinite, is_quadratic, thin_equals_dense
from networks import NETWORKS

import holdfast.curvature
from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError

WRONG = '''"""A newcomer with a mistake."""

import torch

from holdfast.curvature.statistic import LayerSize, Statistic
from holdfast.curvature.identity import Identity


class Newcomer(Identity):
    """A price that is MISTAKE."""

    kind = "newcomer"
    paper = "none"

    def apply(self, delta):
        return BODY
'''


@pytest.fixture
def drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Puts one more file into the room of curvatures, as a contributor would."""
    room: ModuleType = holdfast.curvature

    def drop(mistake: str, body: str) -> None:
        (tmp_path / "newcomer.py").write_text(WRONG.replace("MISTAKE", mistake).replace("BODY", body))
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
        catalogue._room.cache_clear()

    yield drop
    monkeypatch.undo()
    catalogue._room.cache_clear()
    import sys

    sys.modules.pop("holdfast.curvature.newcomer", None)


@pytest.mark.parametrize(
    ("mistake", "body", "law"),
    [
        ("negative", "-delta", is_positive_semidefinite),
        ("not symmetric", "torch.cumsum(delta, 0)", is_positive_semidefinite),
        ("not quadratic", "delta * delta.abs()", is_quadratic),
        ("not the thin one", "2 * delta", thin_equals_dense),
    ],
)
def test_a_wrong_newcomer_is_found_and_fails(drop_in, mistake: str, body: str, law) -> None:
    drop_in(mistake, body)
    assert "newcomer" in catalogue.names("curvature")
    assert any(entry.summary == f"A price that is {mistake}." for entry in catalogue.entries())
    network = NETWORKS["mlp"]
    anchor = Anchor.estimate(network.build(), curvature="newcomer")
    curvature = next(iter(anchor.curvatures.values()))
    with pytest.raises(AssertionError):
        law(curvature)


def test_a_right_newcomer_passes(drop_in) -> None:
    drop_in("right", "1.0 * delta")
    anchor = Anchor.estimate(NETWORKS["mlp"].build(), curvature="newcomer")
    for law in LAWS:
        law(next(iter(anchor.curvatures.values())))


def test_rooms_hold_what_the_files_are_named_after() -> None:
    assert {"identity", "diagonal", "kronecker"} <= set(catalogue.names("curvature"))
    assert {"lora", "rslora", "dora", "full"} <= set(catalogue.names("tuner"))
    assert {"low-rank", "dense"} <= set(catalogue.names("shift"))
    assert {"quadratic", "distill"} <= set(catalogue.names("penalty"))
    assert "newcomer" not in catalogue.names("curvature")


@pytest.mark.parametrize(
    ("room", "name", "meant"),
    [
        ("curvature", "kroneker", "kronecker"),
        ("curvature", "diag", "diagonal"),
        ("tuner", "Lora", "lora"),
        ("shift", "lowrank", "low-rank"),
        ("penalty", "distil", "distill"),
    ],
)
def test_a_misspelt_name_gives_the_closest(room: str, name: str, meant: str) -> None:
    with pytest.raises(HoldfastError, match=f"did you mean .*{meant}"):
        catalogue.find(room, name)


def test_a_name_like_nothing_gives_them_all() -> None:
    with pytest.raises(HoldfastError, match=r"(?s)diagonal, eigen, identity, kronecker.*holdfast methods"):
        catalogue.find("curvature", "xyzzy")


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: f"{entry.room}-{entry.name}")
def test_every_entry_says_what_it_is(entry: catalogue.Entry) -> None:
    assert entry.summary.strip().endswith((".", ":", ")"))
    assert len(entry.summary) > 10
    assert isinstance(entry.paper, str)
