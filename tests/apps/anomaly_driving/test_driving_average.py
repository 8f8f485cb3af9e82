"""The mean of models is the mean of their weights, and refuses what has no mean."""

import pytest
import torch

from apps.anomaly_driving.average import average, main
from apps.anomaly_driving.model import AnomalyModel, ModelConfig, load
from apps.anomaly_driving.segmenter import SegmenterConfig
from core.errors import AleatorError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one network, and one with more classes."""
    root = tmp_path_factory.mktemp("average")
    segmenter = SegmenterConfig(arch="unet", encoder="resnet18", depth=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, classes in (("a", "xyz"), ("b", "xyz"), ("c", "wxyz")):
            config = ModelConfig(classes=tuple(classes), segmenter=segmenter)
            AnomalyModel(config).eval().save(root / name)
    return root


def test_weights_are_averaged(folders, tmp_path):
    one, two = (load(folders / name).state_dict() for name in "ab")
    mean = average(tmp_path / "m", [folders / "a", folders / "b"], [0.25, 0.75])
    for name, value in load(tmp_path / "m").state_dict().items():
        assert torch.equal(value, mean.state_dict()[name])
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * one[name] + 0.75 * two[name])


def test_the_command_line_averages_alike(folders, tmp_path):
    main([str(tmp_path / "m"), str(folders / "a"), str(folders / "a")])
    one, two = (load(folder).state_dict() for folder in (folders / "a", tmp_path / "m"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        ("a", None, "at least two"),
        ("ab", [0.5, 0.6], "sum to 1"),
        ("ab", [1.0], "2 that sum to 1"),
        ("ac", None, "another network or other classes"),
    ],
)
def test_what_has_no_mean_is_refused(folders, tmp_path, names, weights, words):
    with pytest.raises(AleatorError, match=words):
        average(tmp_path / "m", [folders / name for name in names], weights)


def test_nothing_is_overwritten(folders):
    with pytest.raises(AleatorError, match="holds a model"):
        average(folders / "c", [folders / "a", folders / "b"])


@pytest.mark.parametrize(
    ("weights", "words"), [("a,b", "invalid numbers value"), ("0.3,0.3", "sum to 1")]
)
def test_the_command_line_refuses_in_one_line(folders, tmp_path, capsys, weights, words):
    given = [str(tmp_path / "m"), str(folders / "a"), str(folders / "a"), "--weights", weights]
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "m").exists()
