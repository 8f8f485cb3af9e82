"""Score maps on disk: at the image's own size, resumable, and equal to what the network says."""

from __future__ import annotations

import cv2
import h5py
import numpy as np
import pytest
import torch

from apps.anomaly_driving import open_scorer, read_image
from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.files import read_score
from apps.anomaly_driving.network import Network, Scorer, open_network
from apps.anomaly_driving.score import Writing, frames_per_second, open_set, score_images
from apps.anomaly_driving.tiles import Tiling
from core.errors import AleatorError


@pytest.fixture
def folder(draw, tmp_path):
    """Images of mixed sizes, as photographs are."""
    for i, size in enumerate([(48, 96), (60, 80), (70, 50), (96, 200)]):
        draw.image(tmp_path / f"photos/{i}.png", i, size)
    return tmp_path / "photos"


def quiet(message):
    del message


def test_every_image_at_its_own_size(driving_model, folder, tmp_path):
    network = open_network(driving_model)
    paths = score_images(network, open_data(folder), ("energy",), tmp_path / "out", say=quiet)
    assert [path.name for path in paths] == ["0.hdf5", "1.hdf5", "2.hdf5", "3.hdf5"]
    for path in paths:
        image = cv2.imread(str(folder / f"{path.stem}.png"))
        value = read_score(path, image.shape[:2])
        assert value.dtype == np.float16
        assert cv2.imread(str(path.with_suffix(".png"))).shape == image.shape
        long_side = 96
        scale = long_side / max(image.shape)
        small = cv2.resize(
            image[..., ::-1],
            (round(image.shape[1] * scale), round(image.shape[0] * scale)),
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
        )
        x = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            energy = -network.model(x).logits.logsumexp(1)[None]
        wanted = torch.nn.functional.interpolate(energy, size=image.shape[:2], mode="bilinear")
        assert value.astype(np.float64) == pytest.approx(wanted[0, 0].double().numpy(), abs=4e-3)


def test_the_door_from_python_gives_what_the_files_hold(driving_model, folder, tmp_path):
    network = open_network(driving_model)
    score_images(network, open_data(folder), ("energy",), tmp_path / "out", say=quiet)
    scorer = open_scorer(driving_model, "energy,jsd")
    found = scorer(read_image(folder / "2.png").pixels)
    assert list(found.scores) == ["energy", "jsd"]
    np.testing.assert_array_equal(found.scores["energy"], read_score(tmp_path / "out/2.hdf5"))
    with pytest.raises(AleatorError, match="no such model"):
        open_scorer(tmp_path / "nothing")
    with pytest.raises(AleatorError, match="unknown score 'sofa'"):
        open_scorer(driving_model, ["sofa"])


def test_several_scores_have_a_folder_each(driving_model, folder, tmp_path):
    network = open_network(driving_model)
    names = ("msp", "hybrid")
    writing = Writing(overlays=False)
    paths = score_images(
        network, open_data(folder), names, tmp_path / "out", writing=writing, say=quiet
    )
    assert len(paths) == 8
    assert (tmp_path / "out/hybrid/2.hdf5").exists()
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_stopped_run_goes_on(driving_model, folder, tmp_path):
    network, data, out = open_network(driving_model), open_data(folder), tmp_path / "out"
    score_images(network, data, ("energy",), out, say=quiet)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.hdf5")}
    (out / "2.hdf5").unlink()
    said: list[str] = []
    score_images(network, data, ("energy",), out, say=said.append)
    assert said == ["3 of 4 images are scored already"]
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.hdf5")}
    assert [path.name for path in before if before[path] != after[path]] == ["2.hdf5"]


def test_files_of_other_settings_are_not_mixed(driving_model, folder, tmp_path):
    data, out = open_data(folder), tmp_path / "out"
    score_images(open_network(driving_model), data, ("energy",), out, say=quiet)
    other = open_network(driving_model, longer_side=0)
    with pytest.raises(AleatorError, match=r"0.hdf5 is there, of another model or other settings"):
        score_images(other, data, ("energy",), out, say=quiet)
    with pytest.raises(AleatorError, match="other settings"):
        score_images(open_network(driving_model), data, ("msp",), out, say=quiet)
    score_images(other, data, ("energy",), out, writing=Writing(overwrite=True), say=quiet)
    with h5py.File(out / "0.hdf5") as file:
        assert file["value"].attrs["longer_side"] == "0"


def test_open_set_labels(driving_model, folder, tmp_path):
    network, data = open_network(driving_model), open_data(folder)
    scored = Scorer(network, ("energy",))(next(iter(data)).image)
    middle = float(np.median(scored.scores["energy"]))
    writing = Writing(open_set=True, thresholds={"energy": middle})
    score_images(network, data, ("energy",), tmp_path / "out", writing=writing, say=quiet)
    found = cv2.imread(str(tmp_path / "out/0_classes.png"), cv2.IMREAD_UNCHANGED)
    assert found.shape == (48, 96)
    unknown = scored.scores["energy"] >= np.float16(middle)
    assert 0.4 < unknown.mean() < 0.6
    assert (found == np.where(unknown, 3, scored.classes)).all()
    assert (open_set(scored.classes, scored.scores["energy"], 1e4, 3) == scored.classes).all()
    with pytest.raises(AleatorError, match="--open-set needs a threshold of msp"):
        score_images(network, data, ("msp",), tmp_path / "b", writing=writing, say=quiet)


def test_tiled_scores_are_near_those_of_the_whole(driving_model, draw, tmp_path):
    """The U-Net's field is larger than the margin: equal but for what lies beyond it."""
    draw.image(tmp_path / "large.png", 0, (128, 512))
    image = next(iter(open_data(tmp_path / "large.png"))).image
    whole = Scorer(open_network(driving_model, longer_side=0), ("energy",))(image)
    tiling = Tiling(256, 128, 48)
    cut = Scorer(open_network(driving_model, longer_side=0, tiling=tiling), ("energy",))(image)
    difference = np.abs(whole.scores["energy"].astype(float) - cut.scores["energy"])
    assert whole.scores["energy"].std() > 0.01
    assert difference.max() < 0.1 * whole.scores["energy"].astype(float).std()


def test_what_cannot_be_scored(driving_model, draw, tmp_path):
    network = open_network(driving_model)
    draw.image(tmp_path / "a/small.png", 0, (16, 200))
    with pytest.raises(AleatorError, match=r"small.png: 16×200 pixels; .* at least 32"):
        score_images(network, open_data(tmp_path / "a"), ("energy",), tmp_path / "o", say=quiet)
    with pytest.raises(AleatorError, match="--longer-side 20: at least 32"):
        open_network(driving_model, longer_side=20)

    class Broken(torch.nn.Module):
        classes, fingerprint = ("a", "b"), ""

        def forward(self, x):
            from apps.anomaly_driving.model import Outputs

            return Outputs(torch.full((1, 2, *x.shape[2:]), self.value), None, torch.empty(0))

    broken = Broken()
    image = np.zeros((40, 40, 3), np.uint8)
    broken.value = float("nan")
    with pytest.raises(AleatorError, match="NaN or infinite logits"):
        Scorer(Network(broken), ("energy",))(image, "x.png")
    broken.value = 1e6
    with pytest.raises(AleatorError, match=r"x.png: energy: .* 1e\+06 does not fit float16"):
        Scorer(Network(broken), ("energy",))(image, "x.png")


def test_images_a_second_is_of_the_median():
    assert frames_per_second([0.1, 0.1, 0.1, 9.0, 0.1]) == pytest.approx(10)
    assert np.isnan(frames_per_second([]))
