"""A sweep's table, what RankMe would choose, and how that agrees with labels."""

import json
import shutil
from dataclasses import replace

import pytest

from appssl.artifact import write_json
from appssl.reports.sweep import Row, agreement, write_sweep
from appssl.reports.wording import number

METHOD = {"learner.name": "joint_embedding", "layer": "projector", "width": 128, "num_rows": 2048}


def row(name, rank_me, value, method=METHOD):
    return Row(name, {"lr": name}, 3, rank_me, "macro_f1", value, "0.1 to 0.2", method=method)


def test_rank_me_chooses_the_largest_and_says_what_labels_would_choose():
    said = " ".join(agreement([row("a", 25.0, 0.42), row("b", 42.7, 0.40), row("c", 37.6, 0.44), row("d", 11.3, 0.41)]))
    assert "The largest RankMe, which needs no labels, has b (42.7000)" in said
    assert "With labels it would be c: macro F1 0.4400, 0.0400 above" in said
    # Ranks 2, 4, 3, 1 against 3, 1, 4, 2: Spearman 1 - 6 * 12 / 60; of six pairs three agree.
    assert "Spearman −0.2000, Kendall +0.0000" in said


def test_correlations_are_those_of_ranks():
    # RankMe and accuracy of a trial with seven temperatures, in the order of the temperatures.
    ranks, values = (25.0, 35.6, 42.7, 37.6, 25.2, 17.3, 11.3), (42.9, 43.9, 47.0, 44.8, 44.0, 42.2, 41.3)
    said = " ".join(agreement([row(str(n), *pair) for n, pair in enumerate(zip(ranks, values, strict=True))]))
    assert "over 7 points: Spearman +0.9643, Kendall +0.9048" in said  # one neighbouring pair is out of order
    assert "Labels choose the same" in said


def test_points_of_different_methods_are_cautioned_against_and_one_rank_for_all_says_nothing():
    rows = [row("a", 25.0, 0.4), row("b", 30.0, 0.5, {**METHOD, "width": 64})]
    assert "differ in these" in agreement(rows)[-1]
    assert "differ in these" not in agreement([rows[0], replace(rows[1], method=METHOD)])[-1]
    assert agreement([row("a", 25.0, 0.4), row("b", 25.0, 0.5)]) == []
    assert agreement([row("a", None, 0.4), row("b", None, 0.5)]) == []


def test_without_labels_only_the_choice_is_said():
    said = agreement([replace(row("a", 25.0, None), metric=None), row("b", 30.0, 0.5)])
    assert len(said) == 1


def test_each_seed_says_for_itself_how_rank_me_agrees():
    rows = [
        replace(row("a", 15.0, 0.45), by_seed={"s0": (10.0, 0.4), "s1": (20.0, 0.5)}),
        replace(row("b", 25.0, 0.40), by_seed={"s0": (20.0, 0.5), "s1": (30.0, 0.3)}),
        replace(row("c", 30.0, 0.55), by_seed={"s0": (30.0, 0.7), "s1": (25.0, 0.4)}),
    ]
    # s0: equal ranks. s1: ranks 1, 3, 2 against 3, 1, 2; chosen is b, 0.2 below a.
    expected = (
        "In each seed alone: Spearman +1.0000, −1.0000; what RankMe chooses is 0.0000, 0.2000 below the best macro F1."
    )
    assert agreement(rows)[-1] == expected
    assert "each seed" not in " ".join(agreement([*rows[:2], replace(rows[2], by_seed={"s0": (1.0, 0.4)})]))


@pytest.fixture
def plan(results):
    runs = {}
    for name, rank in (("few", 3.5), ("all", 7.25)):
        folder = results / "wearable" / f"tiny@{name}" / "s0"
        shutil.copytree(results / "wearable" / "tiny" / "s0", folder)
        encoder = {"encoder": f"wearable/tiny@{name}/s0/pretrain"}
        runs[f"tiny@{name}"] = {"s0": {"stages": {"pretrain": {"inputs": {}}, "evaluate": {"inputs": encoder}}}}
        probe = {"layer": "projector", "width": 8, "num_rows": 64, "rank_me": rank}
        write_json(folder / "pretrain" / "probe.json", probe)
    points = {"few": {"finetune.label_fraction": 0.1}, "all": {"finetune.label_fraction": 1.0}}
    sweep = {"name": "shares", "description": "Shares of <labels>.", "points": points}
    targets = [["wearable", name, 0] for name in runs]
    return {"results": str(results), "runs": {"wearable": runs}, "targets": targets, "sweep": sweep}


def test_page_and_summary_have_a_row_for_each_point(plan, tmp_path):
    pages = write_sweep(plan, summary=tmp_path / "docs", command="appssl run tiny --sweep shares.yaml")
    page = pages[0].read_text()
    text = (tmp_path / "docs" / "wearable-tiny-shares.md").read_text()
    assert "Shares of &lt;labels&gt;." in page
    for shown in (page, text):
        assert "3.5000" in shown
        assert "7.2500" in shown
    lines = [line for line in text.splitlines() if line.startswith(("| 0.1", "| 1.0"))]
    assert [line.split(" | ")[0] for line in lines] == ["| 0.1", "| 1.0"]


def test_a_point_that_was_not_evaluated_is_shown_without_value(plan, results, tmp_path):
    (results / "wearable/tiny@few/s0/evaluate/manifest.json").unlink()
    write_sweep(plan, summary=tmp_path / "docs", command="appssl run")
    line = next(x for x in (tmp_path / "docs" / "wearable-tiny-shares.md").read_text().splitlines() if "| 0.1" in x)
    assert line.split(" | ")[1:] == ["0", "3.5000", "–", "– |"]


def test_over_seeds_each_point_has_its_difference_to_what_it_was_compared_with(plan, results, tmp_path):
    home = results / "wearable"
    for seed in (0, 1):
        shutil.copytree(home / "tiny" / f"s{seed}", home / "scratch" / f"s{seed}")
    shutil.copytree(home / "tiny" / "s1", home / "tiny@few" / "s1")
    plan["targets"].append(["wearable", "tiny@few", 1])
    plan["runs"]["wearable"]["tiny@few"]["s1"] = plan["runs"]["wearable"]["tiny@few"]["s0"]
    write_sweep(plan, summary=tmp_path / "docs", command="appssl run")
    text = (tmp_path / "docs" / "wearable-tiny-shares.md").read_text()
    head, few, every = (
        line.split(" | ") for line in text.splitlines() if line.startswith(("| fine", "| 0.1", "| 1.0"))
    )
    assert head[-1] == "difference to scratch |"  # the twin has no results beside these
    stored = [json.loads((home / f"tiny@few/s{seed}/evaluate/comparison.json").read_text()) for seed in (0, 1)]
    rows = [row for found in stored for row in found if (row["against"], row["metric"]) == ("scratch", "macro_f1")]
    assert few[-1].startswith(f"{number(sum(row['value'] for row in rows) / 2, signed=True)} (")
    assert every[-1] == "– |"  # one seed alone
