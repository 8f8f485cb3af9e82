"""Networks by name, never downloaded; unknown names are answered with near ones."""

import pytest
import torch
from safetensors.torch import save_file

from apps.anomaly_driving.segmenter import SegmenterConfig, build_segmenter, nearest, read_weights
from core.errors import AleatorError, CheckpointError


@pytest.mark.parametrize(
    ("arch", "encoder", "depth"),
    [("unet", "resnet18", 5), ("deeplabv3plus", "tu-resnet10t", 4), ("fpn", "tu-resnet10t", 5)],
)
def test_architectures_give_a_channel_for_each_class_and_the_head(arch, encoder, depth):
    network = build_segmenter(SegmenterConfig(arch, encoder, depth), classes=5).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 6, 64, 96)


def test_no_head_no_channel():
    network = build_segmenter(SegmenterConfig(outlier_head=False), classes=5).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape[1] == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "resnet19"}, "near names: resnet18"),
        ({"encoder": "tu-resnet18q"}, "tu-resnet18"),
        ({"arch": "unett"}, "near names: unet"),
        ({"options": {"wings": 2}}, "no option 'wings'"),
    ],
)
def test_unknown_names_list_near_ones(changes, words):
    with pytest.raises(AleatorError, match=words):
        build_segmenter(SegmenterConfig(**changes), classes=5)


def test_weights_that_would_be_downloaded_are_refused():
    with pytest.raises(AleatorError, match="would need a download"):
        SegmenterConfig(encoder_weights="imagenet")


def test_depth_out_of_range():
    with pytest.raises(AleatorError, match="3, 4 or 5"):
        SegmenterConfig(depth=2)


def test_nothing_near_lists_some():
    with pytest.raises(AleatorError, match="some that there are: a, b"):
        nearest("thing", "zzz", ["a", "b"])


def test_weights_of_a_file(tmp_path):
    save_file({"x": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors")["x"].tolist() == [0, 1, 2]
    with pytest.raises(AleatorError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:9])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "cut.safetensors")
