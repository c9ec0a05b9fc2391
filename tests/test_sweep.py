"""A sweep's file: its points, what they are called, and what is refused."""

import pytest

from appssl.errors import SettingsError
from appssl.sweep import read_sweep


@pytest.fixture
def sweep(tmp_path):
    def read(text):
        (tmp_path / "rates.yaml").write_text(text)
        return read_sweep(tmp_path / "rates.yaml")

    return read


def test_points_are_all_combinations_in_the_order_of_the_file(sweep):
    found = sweep("grid:\n  pretrain.fit.lr: [1.0e-3, 0.1]\n  finetune.label_fraction: [0.5, 1.0]\n")
    assert found.name == "rates"
    assert [dict(point.overrides) for point in found.points] == [
        {"pretrain.fit.lr": lr, "finetune.label_fraction": share} for lr in (1e-3, 0.1) for share in (0.5, 1.0)
    ]
    assert found.points[0].name == "lr-0.001+label_fraction-0.5"


def test_names_are_as_long_as_they_must_be_and_fit_into_a_path(sweep):
    found = sweep(
        "grid:\n  pretrain.fit.lr: [0.1]\n  finetune.fit.lr: [0.2]\n  pretrain.learner: [{name: byol, momentum: 0.9}]\n"
    )
    assert found.points[0].name == "pretrain.fit.lr-0.1+finetune.fit.lr-0.2+pretrain.learner-byol"
    assert sweep("grid: {data.source.table: [a/b c.csv]}").points[0].name == "table-a_b_c.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {}", "names no setting"),
        ("grid: {pretrain.fit.lr: []}", "needs values, each once"),
        ("grid: {pretrain.fit.lr: [0.1, 0.1]}", "needs values, each once"),
        ("gird: {pretrain.fit.lr: [0.1]}", "Did you mean grid"),
        ("grid: {data.source.table: [a b, a/b]}", "gives 2 points the name table-a_b"),
        (f"grid: {{a.b: {list(range(1001))}}}", "more than 1000 points"),
        (f"grid: {{a.b: [{'x' * 130}]}}", "too long for a folder"),
    ],
)
def test_what_is_wrong_is_named(sweep, text, message):
    with pytest.raises(SettingsError, match=message):
        sweep(text)
