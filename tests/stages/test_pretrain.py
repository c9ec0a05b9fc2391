import pytest

from appssl.errors import AppsslError
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.pretrain import pretrain


def config(sampler):
    values = {
        "backbone": {"name": "small_cnn", "widths": [16]},
        "views": {"name": "image_two_crop", "size": 16},
        "sampler": sampler,
        "fit": {"steps": 2, "batch_size": 4, "log_every": 1},
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
