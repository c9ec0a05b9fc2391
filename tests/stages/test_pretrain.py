import pytest

from appssl.errors import AppsslError
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.frame import read_run
from appssl.stages.pretrain import pretrain


def config(sampler, **fit):
    values = {
        "backbone": {"name": "small_cnn", "widths": [16]},
        "views": {"name": "image_two_crop", "size": 16},
        "sampler": sampler,
        "fit": {"steps": 2, "batch_size": 4, "log_every": 1, **fit},
    }
    settings = validate(MODELS["pretrain"], values, file="r.yaml", owner="pretrain")
    return StageConfig("pretrain", "webnoisy", "tiny", 0, settings)


def test_a_recipe_can_balance_its_samples(crawl, tmp_path):
    found = pretrain(
        config({"name": "balanced", "by": "label"}), crawl.data.folder, tmp_path / "out", accelerator="cpu"
    )
    assert found.has("encoder.safetensors")


def test_a_sampler_that_cannot_pretrain_is_refused(crawl, tmp_path):
    with pytest.raises(AppsslError, match="the data has no bags"):
        pretrain(config("bags"), crawl.data.folder, tmp_path / "out", accelerator="cpu")


def test_the_record_of_the_run_has_the_number_of_micro_batches(crawl, tmp_path):
    pretrain(config("uniform", accumulate=2), crawl.data.folder, tmp_path / "out", accelerator="cpu")
    assert read_run(tmp_path / "out")["micro_batches"] == 2
