"""A study's rows on the report's page: what a way tries tells its settings apart, and seeds do not."""

from report_rows import row

from holdfast.report.comparison import compare
from holdfast.report.words import setting_name


def of_way(way, seed, penalty="none", held=None, **values):
    """One finished run of a way."""
    words = ", ".join(f"{key} {value}" for key, value in values.items())
    return row(penalty, held, seed, way=way, setting=words, values=values)


def both_seeds(way, *more, **values):
    return [of_way(way, seed, *more, **values) for seed in (0, 1)]


def test_settings_are_told_apart_by_whatever_their_way_tries():
    rows = [
        *both_seeds("plain"),
        *both_seeds("low-learning-rate", learning_rate=1e-3),
        *both_seeds("low-learning-rate", learning_rate=3e-4),
        *both_seeds("kronecker", "kronecker", 4.0, strength=4.0),
        *both_seeds("kronecker+distill-self", "kronecker+distill-self", 4.0, together=0.5),
        *both_seeds("kronecker+distill-self", "kronecker+distill-self", 4.0, together=2.0),
        *both_seeds("damped", "kronecker", 4.0, strength=4.0, damping=0.1),
        *both_seeds("damped", "kronecker", 4.0, strength=4.0, damping=0.3),
        *both_seeds("labels", "diagonal", 4.0, fisher="data"),
        *both_seeds("labels", "diagonal", 4.0, fisher="sampled"),
    ]
    found = compare(rows)
    assert [len(setting.rows) for setting in found] == [2] * 10
    assert sum(setting.is_plain for setting in found) == 1
    names = [setting_name(setting) for setting in found]
    assert len(set(names)) == 10
    assert any("together" in name and "0.5" in name for name in names)
    assert len({setting.series for setting in found if setting.rows[0]["way"] == "low-learning-rate"}) == 1
