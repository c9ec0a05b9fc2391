"""From labels of slides to scores and heatmaps of new slides, through the command line."""

import json

import polars as pl
import pytest
from PIL import Image

from tests.commands import appssl

pytestmark = pytest.mark.slow  # runs whole commands

RECIPE = """\
description: slides as bags of tiles
domain: wsi
data:
  make: {size: small, seed: 0}
  source: {name: wsi, table: slides.csv, slide_labels: true, spacing_um: 2.0, tile_px: 48, split: {test: 0.4}}
  budget: 0.2
finetune:
  finetuner: FINETUNER
  backbone: {name: small_cnn, widths: [8, 16]}
  views: {name: histology, size: 32}
  fit: {epochs: 3, batch_size: BATCH, lr: 1e-3, log_every: 1}
evaluate: {evaluators: [mil], compare: COMPARE}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    recipes = {
        "tiles": ("full", "16", "[]"),
        "attention": ("abmil", "2", "[tiles]"),
        "ins": ("{name: ins, warmup_epochs: 1, positive: tumour, queue: 64}", "16", "[tiles]"),
    }
    for name, (finetuner, batch, compare) in recipes.items():
        text = RECIPE.replace("FINETUNER", finetuner).replace("BATCH", batch).replace("COMPARE", compare)
        if name != "tiles":
            start = text.index("data:")
            text = text[:start] + "data: tiles\n" + text[text.index("finetune:") :]
        (folder / f"{name}.yaml").write_text(text)
    done = appssl("run", "attention.yaml", "ins.yaml", cwd=folder)
    assert done.code == 5, done.err  # the synthetic slides hold a damaged one
    return folder


@pytest.mark.parametrize("name", ["attention", "ins"])
def test_slides_are_measured_and_compared(project, name):
    run = project / "results" / "wsi" / name / "s0"
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())["mil"]
    bags = pl.read_parquet(run / "evaluate" / "bags.parquet")
    right = (bags["prediction"] == bags["target"]).mean()
    assert metrics["bag_accuracy"]["value"] == pytest.approx(right)
    assert not any(metric.startswith("tile_") for metric in metrics)  # no tile has a class of its own
    compared = json.loads((run / "evaluate" / "comparison.json").read_text())
    assert {row["against"] for row in compared} == {"tiles"}
    assert "bag_accuracy" in {row["metric"] for row in compared}
    assert "bag" in (run / "report" / "report.html").read_text()


def test_new_slides_get_scores_and_heatmaps(project):
    made = next(project.rglob("slides.csv"))
    done = appssl("predict", "results/wsi/attention/s0", made, "--out", "scores.csv", cwd=project)
    assert done.code == 5, done.err
    scores, tiles = pl.read_csv(project / "scores.csv"), pl.read_csv(project / "scores.tiles.csv")
    assert scores["slide_id"].is_unique().all()
    assert scores["num_tiles"].sum() == len(tiles)
    assert ((scores["p_normal"] + scores["p_tumour"] - 1).abs() < 1e-5).all()
    for slide, count in scores.select("slide_id", "num_tiles").iter_rows():
        picture = Image.open(project / "scores.heatmaps" / f"{slide}.png")
        assert 500 < max(picture.size) <= 1600
        drawn = json.loads((project / "scores.heatmaps" / f"{slide}.geojson").read_text())
        assert len(drawn["features"]) == count
        values = [feature["properties"]["measurements"]["p_tumour"] for feature in drawn["features"]]
        own = tiles.filter(slide_id=slide)
        assert values == pytest.approx(own["p_tumour"].to_list(), abs=1e-5)
        assert drawn["features"][0]["geometry"]["coordinates"][0][0] == [own["x"][0], own["y"][0]]
    left_out = pl.read_csv(project / "scores.left_out.csv")
    assert "truncated" in left_out["item"].to_list()


def test_a_model_on_an_encoder_of_other_data_has_the_classes_and_bags_of_its_own(project):
    encoder = RECIPE[: RECIPE.index("finetune:")].replace("slide_labels: true", "points: {table: points.csv}")
    encoder += """\
pretrain:
  backbone: {name: small_cnn, widths: [8, 16]}
  views: {name: histology, size: 32}
  learner: joint_embedding
  fit: {epochs: 1, batch_size: 16}
"""
    start = RECIPE[: RECIPE.index("data:")]
    fit = "finetune:\n  finetuner: abmil\n  fit: {epochs: 1, batch_size: 2}\nevaluate: {evaluators: [mil]}\n"
    (project / "encoder.yaml").write_text(encoder)
    (project / "borrowed.yaml").write_text(f"{start}data: tiles\npretrain: {{from: encoder}}\n{fit}")
    done = appssl("run", "borrowed.yaml", cwd=project)
    assert done.code == 5, done.err
    runs = project / "results" / "wsi"
    about = json.loads((runs / "borrowed" / "s0" / "finetune" / "model.json").read_text())
    own = json.loads((runs / "attention" / "s0" / "finetune" / "model.json").read_text())
    assert about["meta"]["classes"] == own["meta"]["classes"] == ["normal", "tumour"]
    assert about["meta"]["facts"]["bag"] == "slide_id"
    assert about["views_meta"]["classes"] != about["meta"]["classes"]
    done = appssl(
        "predict", "results/wsi/borrowed/s0", next(project.rglob("slides.csv")), "--out", "b.csv", cwd=project
    )
    assert done.code == 5, done.err
    scores = pl.read_csv(project / "b.csv")
    assert scores["slide_id"].is_unique().all()
    assert {"p_normal", "p_tumour", "num_tiles"} <= set(scores.columns)
