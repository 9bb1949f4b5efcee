"""Several results on one page: what is merged, told apart or refused, and `holdfast report` around it."""

import json

import pytest
from cli_runs import refused, succeeded
from report_rows import COMPARISON, budgeted, measured, results, row

from holdfast.errors import HoldfastError
from holdfast.report.comparison import compare
from holdfast.report.merging import merge, read
from holdfast.report.words import setting_name

TUNED = {"model": "a/llama", "rank": 8, "strength": 1.0, "distill": 0.0, "anchor": [], "training": {"steps": 100}}
ANCHORED = TUNED | {"anchor": ["anchors/k"]}


@pytest.fixture
def runs(tmp_path):
    """Name -> a run folder with these results; returns all folders so far."""
    folders = []

    def add(name, rows, settings=TUNED, **more):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results(rows, settings=settings, **more)))
        folders.append(folder)
        return folders

    return add


def merged(folders, **more):
    return merge(*read(folders), **more)


def names(content):
    return [setting_name(s, alone=False).replace("\u00a0", " ") for s in compare(content["rows"])]


def test_seeds_of_several_folders_become_one_setting(runs):
    runs("a", [row(), row(seed=1)])
    runs("b", [row("kronecker", 2.0, source=3.6)], ANCHORED | {"strength": 2.0})
    content = merged(runs("c", [row("kronecker", 2.0, seed=1, source=3.7)], ANCHORED | {"strength": 2.0, "seed": 1}))
    assert names(content) == ["LoRA: Plain", "LoRA: Kronecker (strength 2)"]
    held = compare(content["rows"])[1]
    assert held.share.count == 2
    assert content["warnings"] == ["Only one seed."]
    assert {one["folder"] for one in content["rows"]} == {"a", "b", "c"}
    assert content["source"]["name"] == "documentation prose"


def test_other_training_is_told_apart_and_compared_with_its_own_plain_run(runs):
    runs("a", [row(source=4.48), row("kronecker", 1.0, source=3.58)])
    wide = TUNED | {"rank": 16, "training": {"steps": 200}}
    content = merged(runs("b", [row(source=3.68), row("kronecker", 1.0, source=3.58)], wide))
    shares = {name: s.share.median for name, s in zip(names(content), compare(content["rows"]), strict=True)}
    assert shares == pytest.approx(
        {
            "LoRA, rank 8, steps 100: Plain": 1.0,
            "LoRA, rank 8, steps 100: Kronecker (strength 1)": 0.1,
            "LoRA, rank 16, steps 200: Plain": 1.0,
            "LoRA, rank 16, steps 200: Kronecker (strength 1)": 0.5,
        }
    )
    assert "Runs differ in rank, steps: they are told apart by it." in content["warnings"]


def test_another_way_of_holding_on_shares_the_plain_run(runs):
    runs("a", [row(source=4.48)])
    runs("b", [row("kronecker", 1.0, source=3.58)], ANCHORED | {"damping": 0.0})
    content = merged(runs("c", [row("kronecker", 1.0, source=3.68)], ANCHORED | {"damping": 0.1}))
    assert names(content)[1:] == [
        "LoRA: Kronecker, damping 0 (strength 1)",
        "LoRA: Kronecker, damping 0.1 (strength 1)",
    ]
    assert [s.share.median for s in compare(content["rows"])] == pytest.approx([1.0, 0.1, 0.2])


def test_a_distillation_weight_beside_a_strength_is_not_a_seed(runs):
    both = ANCHORED | {"distill": 0.3}
    runs("a", [row("kronecker+distill-self", 1.0, seed=0)], both)
    content = merged(runs("b", [row("kronecker+distill-self", 1.0, seed=1)], both | {"distill": 0.6}))
    assert len(compare(content["rows"])) == 2


@pytest.mark.parametrize("other", ["model", "source", "target"])
def test_other_models_and_data_get_a_plot_of_their_own(runs, tmp_path, other):
    runs("a", [row(), row("kronecker", 1.0, source=3.6)])
    changed = (
        {"settings": TUNED | {"model": "b/llama-2"}} if other == "model" else {other: {"name": "x", "item": "token"}}
    )
    folders = runs("b", [row(source=4.0), row("kronecker", 1.0, source=3.5)], **changed)
    content = merged(folders)
    settings = compare(content["rows"])
    assert len({s.panel for s in settings}) == 2
    assert [s.share.median for s in settings] == pytest.approx([1, 0.12 / 0.975, 1, 0.02 / 0.52])
    assert "can’t be held against each other" in content["warnings"][0]
    page = tmp_path / "page.html"
    succeeded("report", *folders, "--out", page)
    text = page.read_text()
    assert 'id="frontier"' in text
    assert 'id="frontier-1"' in text
    assert "Each plot is of a model and data of its own" in text


def test_folders_with_one_name_are_told_apart(runs):
    runs("one/out", [row()])
    parts, _ = read(runs("two/out", [row(seed=1)]))
    assert [part.name for part in parts] == ["one/out", "two/out"]


def test_copies_count_once_and_repeats_are_said(runs, tmp_path):
    folders = runs("a", [row(), row("kronecker", 1.0, source=3.6)])
    runs("b", [row(), row("kronecker", 1.0, source=3.7)])
    content = merged([*folders, tmp_path / "a" / "results.json"])
    assert len(content["rows"]) == 3
    said = " ".join(content["warnings"])
    assert "was named twice" in said
    assert "1 of the rows of b are copies of a’s" in said
    assert "a and b hold runs of the same settings and seed" in said


def test_differing_machines_and_own_warnings_are_said(runs):
    runs("a", [row()], machine={"cpu": "2 cores"}, warnings=["It rained.", "Only one seed."])
    content = merged(runs("b", [row("kronecker", 1.0)], machine={"cpu": "8 cores"}, frontier={"recommendation": "x"}))
    assert content["machine"] == {"a": {"cpu": "2 cores"}, "b": {"cpu": "8 cores"}}
    assert content["versions"] == {"torch": "2.13.0"}
    said = " ".join(content["warnings"])
    for part in ("different machines", "a: It rained.", "the recommendation of b"):
        assert part in said
    assert "frontier" not in content


def test_one_result_keeps_all_it_has(runs):
    [folder] = runs("a", COMPARISON, frontier={"recommendation": "Take it."})
    content = merged([folder], title="Mine")
    assert content["frontier"] == {"recommendation": "Take it."}
    assert content["title"] == "Mine"
    assert content["rows"] == json.loads((folder / "results.json").read_text())["rows"]


def test_other_units_are_refused(runs):
    runs("a", [row()])
    with pytest.raises(HoldfastError, match="different units: nats per frame in b, nats per token in a"):
        merged(runs("b", [row()], target={"item": "frame"}))


def test_the_command_writes_the_page_and_prints_the_table(runs, tmp_path):
    runs("a", [row(**measured(0.6))])
    folders = runs("b", [budgeted(0.02, 0.018, 0.019)], ANCHORED)
    done = succeeded("report", *folders, "--out", tmp_path / "page.html", "--title", "Both & more")
    assert "budget 0.02" in done.out
    assert "kronecker" in done.out
    assert f"The report is in {tmp_path / 'page.html'}" in done.err
    assert "<h1>Both &amp; more</h1>" in (tmp_path / "page.html").read_text()
    as_json = succeeded("report", *folders, "--out", tmp_path / "page.html", "--json").json
    assert [one["penalty"] for one in as_json["rows"]] == ["none", "kronecker"]
    one = succeeded("report", folders[1], "--out", tmp_path / "page.html")
    assert "held on by kronecker within a budget" in one.out


def test_the_command_refuses_what_is_no_run(runs, tmp_path):
    [folder] = runs("a", [row()])
    page = tmp_path / "page.html"
    for name, content in (("text", "no JSON"), ("list", "[]"), ("old", '{"schema": 0}'), ("empty", '{"schema": 1}')):
        (tmp_path / f"{name}.json").write_text(content)
    bench = {"schema": 1, "rows": [{"tool": "holdfast", "case": "kronecker", "ms": 1.0}]}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    for name, says in (
        ("nothing", "does not exist"),
        ("", f"{tmp_path} holds no results.json"),
        ("text.json", "can't be read as JSON"),
        ("list.json", "holds no object"),
        ("old.json", "schema 0"),
        ("empty.json", "without rows"),
        ("bench.json", "no row has a loss"),
    ):
        refused("report", folder, tmp_path / name, "--out", page, says=[says])
    refused("report", folder, "--out", tmp_path, says=["is a folder", "report.html"])
    assert not page.exists()
