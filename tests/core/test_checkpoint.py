"""Checkpoints come back as they were written, and everything else is refused in one line."""

import json

import pytest
import torch

from core.checkpoint import FORMAT, META, WEIGHTS, load_checkpoint, save_checkpoint
from core.errors import CheckpointError

CONFIG = {"family": "diffusion", "event_shape": [1, 4, 4]}


@pytest.fixture
def folder(tmp_path):
    tensors = {"w": torch.randn(3, 2), "n": torch.tensor(7), "b": torch.ones(2, dtype=torch.bool)}
    save_checkpoint(
        tmp_path / "m", app="climate", config=CONFIG, tensors=tensors, card={"seed": 1},
        data_fingerprint="abc",
    )  # fmt: skip
    return tmp_path / "m"


def test_what_is_written_comes_back(folder):
    tensors = {"w": torch.randn(2, 3).T, "h": torch.randn(4).bfloat16()}  # not contiguous
    written = save_checkpoint(folder, app="hep", config=CONFIG, tensors=tensors)
    found = load_checkpoint(folder, app="hep")
    assert found.config == CONFIG
    assert found.fingerprint == written.fingerprint
    assert set(found.tensors) == {"w", "h"}
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert found.versions["torch"] == torch.__version__
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, META}


def test_fingerprint_is_of_config_and_weights(tmp_path):
    def mark(config, value):
        return save_checkpoint(
            tmp_path, app="a", config=config, tensors={"w": torch.full((2,), value)}
        ).fingerprint

    same = mark({"a": 1, "b": 2}, 1.0)
    assert mark({"b": 2, "a": 1}, 1.0) == same
    assert mark({"a": 1, "b": 3}, 1.0) != same
    assert mark({"a": 1, "b": 2}, 1.0000001) != same


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(folder, keep):
    for name in (WEIGHTS, META):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:keep] if keep >= 0 else whole[:-3])
        with pytest.raises(CheckpointError, match=r"damaged|cut short"):
            load_checkpoint(folder)
        (folder / name).write_bytes(whole)
    assert load_checkpoint(folder).card == {"seed": 1}


def test_changed_weights_are_noticed(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_checkpoint(folder)


def test_other_applications_newer_formats_and_missing_files(folder, tmp_path):
    with pytest.raises(CheckpointError, match="a model of climate, not of hep"):
        load_checkpoint(folder, app="hep")
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_checkpoint(tmp_path / "file")
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**meta, "format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match="newer version"):
        load_checkpoint(folder)
    (folder / META).write_text(json.dumps({"some": "json"}))
    with pytest.raises(CheckpointError, match="not a model of this program"):
        load_checkpoint(folder)
    (folder / META).write_text(json.dumps(meta))
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is missing"):
        load_checkpoint(folder)
