"""Images, labels and score files: read as they are, or refused in one line that says why."""

from __future__ import annotations

import cv2
import h5py
import numpy as np
import pytest

from apps.anomaly_driving.files import (
    as_float16,
    read_image,
    read_score,
    score_attributes,
    write_image,
    write_score,
)
from core.errors import AleatorError


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(0, 256, (40, 60, 3), np.uint8), (5, 5), 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_cut_short(picture, tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), picture)
    assert read_image(path).pixels.shape == (40, 60, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(AleatorError, match=rf"a{suffix}: a \w+ that was cut short; copy it again"):
        read_image(path)


def test_not_images(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(AleatorError, match="no such file"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(AleatorError, match="the file is empty"):
        read_image(path)
    path.write_bytes(b"hello, world")
    with pytest.raises(AleatorError, match="not an image that OpenCV can read"):
        read_image(path)
    with pytest.raises(AleatorError, match="a folder"):
        read_image(tmp_path)


def test_other_kinds_of_pixels(picture, tmp_path):
    def stored(array):
        cv2.imwrite(str(tmp_path / "x.png"), array)
        return read_image(tmp_path / "x.png")

    grey = stored(picture[..., 0])
    assert "grey" in grey.note
    assert (grey.pixels == picture[..., :1]).all()
    alpha = stored(np.dstack([picture, np.full((40, 60), 128, np.uint8)]))
    assert "alpha" in alpha.note
    assert (alpha.pixels == picture[..., ::-1]).all()
    with pytest.raises(AleatorError, match=r"uint16 pixels; .* convert the image to 8 bits"):
        stored(picture.astype(np.uint16) * 256)


def test_orientation_of_a_jpeg_is_applied(picture, tmp_path):
    _, coded = cv2.imencode(".jpg", picture)
    # EXIF of one entry: orientation 6, to be turned by 90 degrees
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = coded.tobytes()
    (tmp_path / "turned.jpg").write_bytes(data[:2] + segment + data[2:])
    assert read_image(tmp_path / "turned.jpg").pixels.shape == (60, 40, 3)


def test_written_images_are_rgb(picture, tmp_path):
    write_image(tmp_path / "a.png", picture)
    assert (read_image(tmp_path / "a.png").pixels == picture).all()
    assert not list(tmp_path.glob(".*partial"))


def test_scores_are_stored_as_the_toolkit_does(tmp_path):
    value = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    write_score(tmp_path / "a.hdf5", value, score="energy", model="0123")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert list(file) == ["value"]
        assert file["value"].dtype == np.float16
        assert file["value"].shape == (20, 30)
    assert (read_score(tmp_path / "a.hdf5", (20, 30)) == value.astype(np.float16)).all()
    assert score_attributes(tmp_path / "a.hdf5") == {"score": "energy", "model": "0123"}
    assert score_attributes(tmp_path / "none.hdf5") == {}


def test_scores_of_other_programs_are_read(tmp_path):
    value = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    np.save(tmp_path / "a.npy", value[None])
    np.savez(tmp_path / "b.npz", value=value)
    np.savez(tmp_path / "c.npz", value)
    for name in ("a.npy", "b.npz", "c.npz"):
        assert (read_score(tmp_path / name, (20, 30)) == value.astype(np.float16)).all()


def test_bad_scores_are_refused(tmp_path):
    value = np.zeros((20, 30), np.float32)

    def refused(array):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(AleatorError, match=r"a\.npy") as found:
            read_score(tmp_path / "a.npy", (20, 30))
        return str(found.value)

    assert "it is transposed" in refused(value.T)
    assert "scores of size 10×30 for an image of 20×30" in refused(value[:10])
    assert "of size 2×20×30" in refused(np.stack([value, value]))
    assert "1 of 600 scores are NaN or infinite" in refused(_one_nan())
    assert "does not fit float16" in refused(value + 70000)
    (tmp_path / "a.npy").write_bytes(b"junk")
    with pytest.raises(AleatorError, match="not a score file"):
        read_score(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["scores"] = value
    with pytest.raises(AleatorError, match=r"no dataset 'value' in it .it has scores"):
        read_score(tmp_path / "a.hdf5")
    (tmp_path / "a.hdf5").write_bytes((tmp_path / "a.hdf5").read_bytes()[:700])
    with pytest.raises(AleatorError, match=r"not a score file .* or cut short"):
        read_score(tmp_path / "a.hdf5")
    with pytest.raises(AleatorError, match=r"one value a pixel, \(H, W\)"):
        as_float16(np.zeros((2, 3, 4)), "x")


def _one_nan():
    value = np.zeros((20, 30), np.float32)
    value[3, 4] = np.nan
    return value
