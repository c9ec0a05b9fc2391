import pytest
import timm
import torch
from safetensors.torch import save_file

from appssl.backbones.timm import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError

META = Meta(source="x", domain="wsi", task="classification")


def network(model="resnet10t", shape=(3, 32, 32), **values):
    torch.manual_seed(0)
    return build(Config(model=model, **values), shape, META)


def test_a_network_by_name_equals_the_library_s_own():
    ours = network()
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("mobilenetv3_small_050", (3, 32, 32)),  # its own num_features leaves a layer out
        ("vit_tiny_patch16_224", (3, 64, 64)),
        ("deit_tiny_patch16_224", (1, 32, 32)),
    ],
)
def test_num_features_is_the_width_that_comes_out(model, shape):
    net = network(model, shape)
    assert net.training
    assert net.eval()(torch.randn(2, *shape)).shape == (2, net.num_features)


def test_building_leaves_no_trace_in_running_statistics():
    assert int(network().bn1.num_batches_tracked) == 0


def test_weights_are_read_from_a_local_file_and_a_classifier_in_it_is_left_out(tmp_path):
    other = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = network(weights=str(tmp_path / "w.safetensors"), licence="apache-2.0")
    assert torch.equal(loaded.conv1[0].weight, other.conv1[0].weight)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match=r"'resnet10x' is not a timm model\. Did you mean resnet10t"):
        network("resnet10x")


def test_images_that_a_network_cannot_take_are_refused():
    with pytest.raises(DataError, match=r"needs images .* these views have shape"):
        network(shape=(9, 64))
    with pytest.raises(DataError, match=r"takes no images of shape \(3, 8, 8\)"):
        network("vit_tiny_patch16_224", (3, 8, 8))


def test_weights_that_cannot_be_used_are_refused_with_the_reason(tmp_path):
    good = network().state_dict()
    save_file({k: v for k, v in good.items() if not k.startswith("layer4")}, tmp_path / "part.safetensors")
    with pytest.raises(DataError, match=r"does not fit this network \(\d+ names differ, such as layer4"):
        network(weights=str(tmp_path / "part.safetensors"), licence="mit")
    save_file({**good, "conv1.0.weight": torch.zeros(1, 2)}, tmp_path / "shape.safetensors")
    with pytest.raises(DataError, match=r"(?s)does not fit this network: .*conv1\.0\.weight"):
        network(weights=str(tmp_path / "shape.safetensors"), licence="mit")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"broken\.safetensors does not fit this network"):
        network(weights=str(tmp_path / "broken.safetensors"), licence="mit")
    for name in ("missing.safetensors", "pickled.pth"):
        (tmp_path / "pickled.pth").write_bytes(b"")
        with pytest.raises(DataError, match=r"is no safetensors file. Pickled weights are not read"):
            network(weights=str(tmp_path / name))


def test_weights_need_a_licence_and_that_of_the_file_must_agree(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path, metadata={"license": "MIT"})
    with pytest.raises(SettingsError, match=r"backbone\.licence: state the licence of .*; the file says MIT"):
        network(weights=str(path))
    with pytest.raises(SettingsError, match=r"backbone\.licence is apache-2\.0, the file .* says MIT"):
        network(weights=str(path), licence="apache-2.0")
    network(weights=str(path), licence="mit")


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "CC-BY-NC-ND-4.0", "non-commercial", "research only"])
def test_non_commercial_weights_need_a_second_setting(tmp_path, licence):
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    with pytest.raises(SettingsError, match="forbids commercial use"):
        network(weights=str(path), licence=licence)
    network(weights=str(path), licence=licence, allow_non_commercial=True)


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "cc-by-4.0", "bsd-3-clause", "MIT AND cc-by-sa-4.0"])
def test_licences_of_free_use_do_not(tmp_path, licence):
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    network(weights=str(path), licence=licence)
