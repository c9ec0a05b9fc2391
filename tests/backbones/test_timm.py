import copy
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import timm
import torch
from safetensors.torch import save, save_file

from appssl import registry
from appssl.backbones.timm import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.stages.models import describe, method
from tests.commands import environment

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


def test_another_order_in_memory_changes_nothing_but_rounding():
    images = torch.randn(2, 3, 32, 32)
    last = network(channels_last=True).eval()
    assert last.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network().eval()(images), last(images), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("model", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_features_of_stages_are_the_means_of_their_maps_and_end_in_the_output(model):
    net, images = network(model, (3, 64, 64)).eval(), torch.randn(2, 3, 64, 64)
    found = net.stage_features(images)
    maps = net.forward_intermediates(images, intermediates_only=True)
    assert len(found) == len(maps)
    for stage, own in zip(found[:-1], maps[:-1], strict=True):
        torch.testing.assert_close(stage, own.flatten(2).sum(2) / own[0, 0].numel())
    assert torch.equal(found[-1], net(images))


def test_features_of_stages_of_a_copy_are_its_own():
    net, images = network().eval(), torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.conv1[0].weight.mul_(-1)
    assert torch.equal(net.stage_features(images)[-1], net(images))
    assert torch.equal(twin.stage_features(images)[-1], twin(images))
    assert not torch.equal(twin(images), net(images))


def test_building_leaves_no_trace_in_running_statistics():
    assert int(network().bn1.num_batches_tracked) == 0


def test_weights_are_read_from_a_local_file_and_a_classifier_in_it_is_left_out(tmp_path):
    other = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = network(weights=str(tmp_path / "w.safetensors"), licence="apache-2.0")
    assert torch.equal(loaded.conv1[0].weight, other.conv1[0].weight)


def test_a_finished_encoder_needs_the_file_of_its_start_no_more(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    config = Config(model="resnet10t", weights=str(path), licence="mit")
    views = registry.load("views", "histology").Config()
    about = describe(meta=META, backbone=config, views=views, input_shape=(3, 32, 32), source={})
    path.unlink()
    assert about["backbone"]["licence"] == "mit"
    build(method("backbones", about["backbone"], file="encoder.json"), (3, 32, 32), META)


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


class Hub(BaseHTTPRequestHandler):
    """What a hub answers for one file: its commit, its size, its bytes."""

    content: bytes

    def do_HEAD(self):
        is_there = self.path == "/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
        self.send_response(200 if is_there else 404)
        for key, value in {"X-Repo-Commit": "c" * 40, "ETag": '"e1"', "Content-Length": len(self.content)}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


def published(hub, cache, licence=None, **extra):
    """Builds resnet10t with published weights from a hub, in a process of its own; the sum of its first weights."""
    code = f"""
from appssl.backbones.timm import Config, build
from appssl.contracts import Meta
from appssl.errors import AppsslError
try:
    config = Config(model="resnet10t.c3_in1k", weights="published", licence={licence!r})
    net = build(config, (3, 32, 32), Meta("x", "wsi", "c"))
    print(net.conv1[0].weight.double().sum().item())
except AppsslError as error:
    print(error)
"""
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1", **extra}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(**settings), capture_output=True, text=True, check=True
    ).stdout.strip()


def test_published_weights_are_downloaded_once_and_their_licence_is_known(tmp_path):
    other = timm.create_model("resnet10t", pretrained=False)
    Hub.content = save(other.state_dict())
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub = f"http://127.0.0.1:{server.server_port}"
        expected = other.conv1[0].weight.double().sum().item()
        assert float(published(hub, tmp_path)) == expected
        assert "resnet10t.c3_in1k says apache-2.0" in published(hub, tmp_path, licence="mit")
        server.shutdown()
    assert float(published(hub, tmp_path)) == expected  # from the cache
    said = published(hub, tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert said.startswith("backbone.weights: those of resnet10t.c3_in1k (timm/resnet10t.c3_in1k) cannot be downloaded")
    assert "give its path" in said


def test_the_licence_of_published_weights_is_part_of_the_settings_and_non_commercial_ones_are_refused():
    assert Config(model="resnet18.a1_in1k", weights="published").licence == "apache-2.0"
    assert Config(model="resnet18.a1_in1k").licence is None
    with pytest.raises(SettingsError, match=r"cc-by-nc-4\.0 forbids commercial use"):
        network("convnextv2_atto.fcmae", weights="published")
    with pytest.raises(SettingsError, match=r"'resnet10t\.nowhere': timm has resnet10t\.c3_in1k"):
        network("resnet10t.nowhere", weights="published")


def test_options_are_arguments_of_the_model():
    net = network("vit_tiny_patch16_224", (3, 32, 32), options={"init_values": 1e-5, "depth": 2})
    assert len(net.blocks) == 2
    assert net.blocks[0].ls1.gamma.unique().item() == pytest.approx(1e-5)
    any_size = network("vit_tiny_patch16_224", (3, 32, 32), options={"img_size": 224, "dynamic_img_size": True})
    assert any_size.pos_embed.shape[1] == 14 * 14 + 1
    with pytest.raises(SettingsError, match=r"backbone\.options: .*colour"):
        network(options={"colour": 1})


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
