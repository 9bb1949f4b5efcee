"""Which entries SIFT trains, against obvious and slow ways of finding them."""

import itertools

import pytest
import torch

from holdfast.errors import HoldfastError
from holdfast.sift.allocation import Competition, counts, top, top_rows, total
from holdfast.sift.scores import SCORES, score_of, scores


def slow_top(values, count):
    """By sorting pairs: the highest first, of equal ones the lowest index."""
    return sorted(sorted(range(len(values)), key=lambda i: (-float(values[i]), i))[:count])


def slow_competition(given, entries, floor, ceiling):
    """One sort over everything, after the floors."""
    chosen = {name: set(slow_top(values, int(floor * len(values) + 1e-6))) for name, values in given.items()}
    most = {name: max(1, int(ceiling * len(values) + 1e-6)) for name, values in given.items()}
    order = [
        (-float(value), tensor, i, name)
        for tensor, (name, values) in enumerate(given.items())
        for i, value in enumerate(values)
    ]
    for _, _, i, name in sorted(order):
        if sum(map(len, chosen.values())) < entries and i not in chosen[name] and len(chosen[name]) < most[name]:
            chosen[name].add(i)
    return {name: sorted(one) for name, one in chosen.items()}


def drawn(size, seed, *, levels=5):
    """Scores with many ties."""
    return torch.randint(levels, (size,), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_highest_are_found_and_the_first_of_equal_ones(count, levels):
    values = drawn(40, 0, levels=levels)
    assert top(values, count).tolist() == slow_top(values, count)


def test_unscored_entries_come_last_and_infinite_ones_first():
    assert top(torch.tensor([1.0, -torch.inf, torch.inf, 0.0]), 3).tolist() == [0, 2, 3]


@pytest.mark.parametrize("count", [0, 3, 6, 8, 23, 54, 66])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_share_and_the_rest_goes_where_the_next_score_is_highest(count, transposed):
    stored = drawn(66, count).view(11, 6) if transposed else drawn(66, count).view(6, 11)
    matrix = stored.T if transposed else stored  # (6, 11)
    found = top_rows(matrix, count)
    each, over = divmod(count, 6)
    following = [sorted(row.tolist(), reverse=True)[each] if each < 11 else 0.0 for row in matrix]
    richer = set(slow_top(torch.tensor(following), over))
    flat = torch.arange(66).view(stored.shape)
    flat = flat.T if transposed else flat
    wanted = [flat[r, c].item() for r in range(6) for c in slow_top(matrix[r], each + (r in richer))]
    assert found.tolist() == sorted(wanted)
    assert len(found) == count


@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, 1.0), (0.1, 1.0), (0.0, 0.3), (0.1, 0.3)])
@pytest.mark.parametrize("entries", [16, 25, 40])
def test_tensors_compete_exactly_under_both_bounds(floor, ceiling, entries):
    given = {name: drawn(size, size, levels=9) * scale for name, size, scale in
             [("a", 50, 1.0), ("b", 7, 100.0), ("c", 80, 0.01), ("d", 30, 1.0)]}  # fmt: skip
    sizes = {name: len(values) for name, values in given.items()}
    competition = Competition(sizes, entries, floor, ceiling)
    for name, values in given.items():
        competition.add(name, values, values * 2)
    won = competition.winners()
    assert {name: indices.tolist() for name, (indices, _) in won.items()} == slow_competition(
        given, entries, floor, ceiling
    )
    assert sum(len(indices) for indices, _ in won.values()) == entries
    for name, (indices, payload) in won.items():
        torch.testing.assert_close(payload, given[name][indices] * 2, rtol=0, atol=0)


def test_a_competition_holds_few_entries():
    competition = Competition(dict.fromkeys("abcdefgh", 1000), 10)
    held = []
    for seed, name in enumerate("abcdefgh"):
        competition.add(name, torch.rand(1000, generator=torch.Generator().manual_seed(seed)))
        held.append(sum(len(one.indices) for one in competition._held.values()))
    assert max(held) <= 20


@pytest.mark.parametrize(("entries", "floor", "ceiling"), [(3, 0.1, 1.0), (90, 0.0, 0.5), (10, 0.6, 0.5)])
def test_bounds_that_cannot_be_met_are_refused(entries, floor, ceiling):
    with pytest.raises(HoldfastError, match="entries with at least"):
        Competition({"a": 50, "b": 50}, entries, floor, ceiling)


@pytest.mark.parametrize("count", [1, 2, 3, 50, 99, 107])
def test_a_count_is_shared_out_to_the_last_entry(count):
    sizes = {"a": 50, "b": 7, "c": 50}
    found = counts(sizes, 0.01, count)
    assert sum(found.values()) == count
    assert all(abs(found[name] - count * size / 107) < 1 for name, size in sizes.items())


def test_a_density_gives_every_tensor_its_share_and_at_least_one():
    assert counts({"a": 1000, "b": 7, "c": 260}, 0.01) == {"a": 10, "b": 1, "c": 3}
    assert counts({"a": 1000, "b": 7}, 1.0) == {"a": 1000, "b": 7}
    assert total({"a": 1000, "b": 7, "c": 260}, 0.01) == 13


@pytest.mark.parametrize("share", [counts, total])
def test_more_entries_than_there_are_is_refused(share):
    with pytest.raises(HoldfastError, match="108 entries are to be trained of 107"):
        share({"a": 100, "b": 7}, 0.01, 108)


def test_named_scores_are_their_equations():
    g, w = torch.tensor([[1.0, -3.0], [2.0, 0.0]]), torch.tensor([[-4.0, 1.0], [0.5, 9.0]])
    expected = {
        "gradient": [[1, 3], [2, 0]],
        "fisher": [[1, -3], [2, 0]],  # given the mean square, it is the score
        "taylor": [[4, 3], [1, 0]],
        "magnitude": [[4, 1], [0.5, 9]],
        "magnitude-low": [[-4, -1], [-0.5, -9]],
    }
    for name, wanted in expected.items():
        found = scores(score_of(name), g, w, "w", 0)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), msg=name)
    assert set(expected) | {"random"} == set(SCORES)


def test_random_scores_depend_on_seed_and_name_alone():
    w = torch.zeros(4, 4)
    found = [
        scores(score_of("random"), None, w, name, seed) for name, seed in [("a", 0), ("a", 0), ("b", 0), ("a", 1)]
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    for one, other in itertools.combinations(found[1:], 2):
        assert not torch.equal(one, other)


def test_a_users_function_scores():
    found = scores(score_of(lambda g, w: g / w.abs()), torch.tensor([4.0, 9.0]), torch.tensor([-2.0, 3.0]), "w", 0)
    assert found.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("function", "says"), [(lambda g, w: g.sum(), "shape, \\(3,\\)"), (lambda g, w: g / 0 * 0, "hold NaN")]
)
def test_a_function_that_scores_badly_is_refused(function, says):
    with pytest.raises(HoldfastError, match=says):
        scores(score_of(function), torch.ones(3), torch.ones(3), "w", 0)


def test_a_misspelt_score_is_answered_with_the_names():
    with pytest.raises(HoldfastError, match=r"magnitude-low.*\n.*did you mean gradient"):
        score_of("gradeint")
