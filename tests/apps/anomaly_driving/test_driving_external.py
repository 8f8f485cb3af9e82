"""Networks from elsewhere, and our own as ONNX: the same logits, or one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from apps.anomaly_driving.export import TOLERANCE, export_onnx, of_outputs
from apps.anomaly_driving.external import ExternalModel, normalisation, open_external, read_classes
from apps.anomaly_driving.fits import load_fits
from apps.anomaly_driving.network import Scorer, open_network
from apps.anomaly_driving.scores import SCORES
from apps.anomaly_driving.using import BUNDLED_MODEL
from core.errors import AleatorError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Net(nn.Module):
    """Logits at half the size, as many networks give them."""

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.softmax = softmax

    def forward(self, x):
        y = self.conv(x)
        return y.softmax(1) if self.softmax else y


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def traced(net, path):
    torch.jit.trace(net.eval(), torch.rand(1, 3, 32, 32)).save(str(path))
    return path


def test_torchscript_gives_the_logits_of_the_network(tmp_path, image):
    torch.manual_seed(0)
    net = Net()
    network = open_network(traced(net, tmp_path / "net.pt"), **normalisation("half"))
    found = network.outputs(image)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        small = net((x - 0.5) / 0.5)
    wanted = nn.functional.interpolate(small, size=(64, 96), mode="bilinear")
    assert torch.allclose(found.logits, wanted, atol=1e-6)
    assert network.model.classes == ("class 0", "class 1", "class 2", "class 3")
    assert not network.has_head
    scored = Scorer(network, ["msp", "energy"])(image)
    wanted_energy = -wanted.logsumexp(1)[0].numpy()
    assert scored.scores["energy"] == pytest.approx(wanted_energy, abs=2e-3)
    assert scored.scores["msp"].shape == (64, 96)


def test_classes_and_normalisation(tmp_path):
    path = traced(Net(), tmp_path / "net.pt")
    (tmp_path / "names.txt").write_text("road\nsky\n\ncar\ntree\n")
    (tmp_path / "names.json").write_text(json.dumps(["road", "sky", "car", "tree"]))
    names = read_classes(tmp_path / "names.txt")
    assert names == read_classes(tmp_path / "names.json") == ("road", "sky", "car", "tree")
    assert open_external(path, classes=names).classes == names
    with pytest.raises(AleatorError, match="4 channels of logits for 2 classes"):
        open_external(path, classes=("a", "b"))
    (tmp_path / "names.txt").write_text("road\nroad\n")
    with pytest.raises(AleatorError, match="each once"):
        read_classes(tmp_path / "names.txt")
    with pytest.raises(AleatorError, match="not a list of class names"):
        read_classes(tmp_path / "none.txt")
    with pytest.raises(AleatorError, match="--normalise zscore: known are imagenet"):
        normalisation("zscore")
    with pytest.raises(AleatorError, match="std > 0"):
        ExternalModel(Net(), mean=(0, 0, 0), std=(1, 0, 1))


def test_softmax_instead_of_logits_is_noticed(tmp_path):
    found = open_external(traced(Net(softmax=True), tmp_path / "net.pt"))
    assert "as if softmax had been applied" in found.warnings[0]
    assert open_external(traced(Net(), tmp_path / "logits.pt")).warnings == []


def test_what_is_not_a_network(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(AleatorError, match=r"not TorchScript.*can run any code"):
        open_external(tmp_path / "weights.pt")
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(AleatorError, match="not an ONNX model, or damaged"):
        open_external(tmp_path / "bad.onnx")
    (tmp_path / "net.bin").write_bytes(b"junk")
    with pytest.raises(AleatorError, match="TorchScript or ONNX"):
        open_external(tmp_path / "net.bin")
    with pytest.raises(AleatorError, match=r"gives \(1, 9\); logits of shape"):
        ExternalModel(lambda x: torch.zeros(1, 9))
    with pytest.raises(AleatorError, match="fails on images of"):
        ExternalModel(nn.Conv2d(4, 3, 1))


@pytest.fixture(scope="module")
def exported(driving_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    network = open_network(driving_model, longer_side=0)
    return network, *export_onnx(network, path, None, "64x96")


def test_onnx_gives_what_the_model_gives(exported, image):
    import onnxruntime as ort

    network, path, worst = exported
    assert worst <= TOLERANCE
    session = ort.InferenceSession(str(path))
    names = [o.name for o in session.get_outputs()]
    assert names[0] == "logits"
    assert names[-1] == "hybrid"
    x = np.random.default_rng(1).random((3, 3, 64, 96), np.float32)  # three images, not one
    found = dict(zip(names, session.run(None, {"images": x}), strict=True))
    with torch.no_grad():
        outputs = network.model(torch.from_numpy(x))
    assert np.abs(found["logits"] - outputs.logits.numpy()).max() < TOLERANCE
    for name in names[1:]:
        wanted = SCORES[name].function(outputs).numpy()
        assert np.abs(found[name] - wanted).max() < TOLERANCE, name
    assert not list(path.parent.glob(".*"))


def test_an_ensemble_of_outputs_goes_into_onnx_with_its_scales(tmp_path):
    import onnxruntime as ort

    network = open_network(BUNDLED_MODEL, longer_side=0)
    name, *_ = fits = load_fits(BUNDLED_MODEL, network.model.fingerprint)
    path, worst = export_onnx(network, tmp_path / "a.onnx", f"jsd,{name}", "64x96", fits=fits)
    assert (name, worst <= TOLERANCE) == ("energy+jsd", True)
    session = ort.InferenceSession(str(path))
    assert [o.name for o in session.get_outputs()] == ["logits", "jsd", "energy+jsd"]
    x = np.random.default_rng(1).random((1, 3, 64, 96), np.float32)
    with torch.no_grad():
        wanted = fits[name](network.model(torch.from_numpy(x))).numpy()
    assert np.abs(session.run(["energy+jsd"], {"images": x})[0] - wanted).max() < TOLERANCE
    assert of_outputs("energy+jsd")
    assert not any(map(of_outputs, ("energy+knn", "knn", "energy")))


def test_our_onnx_is_read_back_with_its_classes(exported, image):
    network, path, _ = exported
    back = open_network(path)
    assert back.model.classes == network.model.classes
    assert torch.allclose(back.outputs(image).logits, network.outputs(image).logits, atol=1e-4)
    larger = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    assert back.outputs(larger).logits.shape == (1, 3, 120, 200)


def test_refused_exports(driving_model, exported, tmp_path):
    network = open_network(driving_model)
    with pytest.raises(AleatorError, match="expected HEIGHTxWIDTH"):
        export_onnx(network, tmp_path / "a.onnx", None, "64")
    with pytest.raises(AleatorError, match="at least 32"):
        export_onnx(network, tmp_path / "a.onnx", None, "16x64")
    with pytest.raises(AleatorError, match=r"name the file \.onnx"):
        export_onnx(network, tmp_path / "a.pt", None, "64x64")
    with pytest.raises(AleatorError, match="knn has to be fitted"):
        export_onnx(network, tmp_path / "a.onnx", "knn", "64x64")
    with pytest.raises(AleatorError, match="exists; choose another name or --overwrite"):
        export_onnx(network, exported[1], None, "64x64")
    with pytest.raises(AleatorError, match="comes from a file already"):
        export_onnx(open_network(exported[1]), tmp_path / "a.onnx", None, "64x64")
