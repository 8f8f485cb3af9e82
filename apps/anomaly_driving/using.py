"""Which model and which frames a command works on; what is wrong with them is said first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.anomaly_driving.calibrate import Threshold, load_thresholds
from apps.anomaly_driving.data import Driving, open_data
from apps.anomaly_driving.fits import load_fits
from apps.anomaly_driving.network import Network, Scorer, open_network
from apps.anomaly_driving.scores import SCORES, Fitted, is_fitted, parse, parts
from apps.anomaly_driving.tiles import Tiling
from core.errors import AleatorError

Say = Callable[[str], None]
SAMPLES = Path(__file__).parent / "samples"
BUNDLED_MODEL, BUNDLED_IMAGES = SAMPLES / "camvid_model", SAMPLES / "images"


@dataclass(frozen=True)
class Using:
    """Which model, and how images are given to it.

    Attributes:
        model: folder of ours, or TorchScript or ONNX file; the bundled weights if None.
        longer_side: of the network's input; the model's own if None, the image's if 0.
        tile: side of tiles for large inputs; whole images if 0.
        overlap: of tiles.
        classes: file of class names of a network that is not ours.
        normalise: how such a network's input is normalised: imagenet, half or none.
        device: "auto", "cpu" or "cuda".
    """

    model: Path | None = None
    longer_side: int | None = None
    tile: int = 0
    overlap: int = 256
    classes: Path | None = None
    normalise: str | None = None
    device: str = "auto"

    def open(self, say: Say) -> Network:
        """The network; says what is doubtful about it.

        Raises:
            AleatorError: no such model, damaged, of another application.
        """
        tiling = Tiling(self.tile, self.overlap, self.overlap // 4) if self.tile else None
        path = self.model or BUNDLED_MODEL
        if self.model is None and not (path / "model.json").exists():
            raise AleatorError("no weights are bundled with this installation; give --model")
        if not path.exists():
            raise AleatorError(f"{path}: no such model; `train` makes one, nothing is downloaded")
        external: dict[str, Any] = {}
        if self.classes is not None:
            from apps.anomaly_driving.external import read_classes

            external["classes"] = read_classes(self.classes)
        if self.normalise is not None:
            from apps.anomaly_driving.external import normalisation

            external |= normalisation(self.normalise)
        network = open_network(
            path, longer_side=self.longer_side, tiling=tiling, device=self.device, **external
        )
        for warning in getattr(network.model, "warnings", ()):
            say(f"warning: {warning}")
        return network

    @property
    def folder(self) -> Path | None:
        """Where fits and thresholds are kept; None beside a single file."""
        path = self.model or BUNDLED_MODEL
        return path if path.is_dir() else None


@dataclass(frozen=True)
class Picking:
    """Which frames of a folder.

    Attributes:
        layout: name of the layout; found out if None.
        split: part of the set; all if None.
        hold_out: known classes to be taken as the anomaly.
    """

    layout: str | None = None
    split: str | None = None
    hold_out: tuple[str, ...] = ()

    def open(self, folder: Path, say: Say) -> Driving:
        """The frames; says what was found."""
        data = open_data(folder, layout=self.layout, split=self.split, hold_out=self.hold_out)
        labelled = sum(frame.label is not None for frame in data.frames)
        say(f"{folder}: layout {data.layout}, {len(data)} images, {labelled} with labels")
        return data


def must_be_folder(path: Path) -> None:
    """Refuse an output folder that is a file, or lies below one.

    Raises:
        AleatorError: it does.
    """
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise AleatorError(f"-o {path}: {place} is a file; name a folder")
            return


def default_scores(network: Network) -> tuple[str, ...]:
    """The score that the model's card names, else hybrid, else energy."""
    named = getattr(network.model, "card", {}).get("score")
    if named:
        return parse(str(named))
    return ("hybrid",) if network.has_head else ("energy",)


def open_scorer(
    model: Path | str | None = None,
    scores: Sequence[str] | str | None = None,
    *,
    say: Say = warnings.warn,
    **settings: Any,
) -> Scorer:
    """Scores from Python: `open_scorer()(image).scores` of (H, W, 3) uint8 RGB.

    Args:
        model: folder, TorchScript or ONNX file; the bundled weights if None.
        scores: their names; the model's default if None.
        say: takes what is doubtful about the model.
        settings: the other fields of `Using`.

    Raises:
        AleatorError: no such model or score, or one that this model cannot give.
    """
    using = Using(model=None if model is None else Path(model), **settings)
    network = using.open(say)
    names = parse(scores) if scores else default_scores(network)
    must_have_head(network, names)
    return Scorer(network, names, fits_of(using, network, names))


def fits_of(using: Using, network: Network, wanted: Sequence[str] | None) -> dict[str, Fitted]:
    """Fitted scores kept with the model; only those wanted, all if None."""
    if using.folder is None:
        return {}
    if wanted is not None and not any(is_fitted(name) for name in wanted):
        return {}
    return dict(load_fits(using.folder, network.model.fingerprint, wanted))


def thresholds_of(using: Using, network: Network, say: Say) -> dict[str, Threshold]:
    """Thresholds of the model, those that were chosen at this input size."""
    if using.folder is None:
        return {}
    found = load_thresholds(using.folder, network.model.fingerprint)
    other = [name for name, t in found.items() if t.longer_side != network.longer_side]
    if other:
        say(f"warning: thresholds of {', '.join(other)} are of another input size, left out")
    return {name: t for name, t in found.items() if name not in other}


def must_have_head(network: Network, names: Sequence[str]) -> None:
    """Refuse scores of the outlier head for a model without one.

    Raises:
        AleatorError: there is such a score.
    """
    for name in names:
        if not network.has_head and any(SCORES[part].head for part in parts(name)):
            raise AleatorError(
                f"score {name}: this model has no outlier head; choose energy or jsd, or train "
                "with negatives"
            )
