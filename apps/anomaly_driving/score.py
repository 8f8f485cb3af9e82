"""Images in, score maps out: one HDF5 a frame, as the toolkit reads it, and an overlay beside it.

    DIR/NAME.hdf5          `value`, (H, W) float16 at the image's own size, higher = unexpected
    DIR/NAME.png           the image with the score over it
    DIR/NAME_classes.png   with open_set: known classes 0 … K-1, and K where it is unexpected

Several scores have a folder each, DIR/SCORE/NAME.hdf5. Each file appears whole or not at all and
says which model and settings made it: a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apps.anomaly_driving.adapters import Frame
from apps.anomaly_driving.data import Driving
from apps.anomaly_driving.files import score_attributes, write_image, write_score
from apps.anomaly_driving.network import Network, Scored, Scorer
from apps.anomaly_driving.plots import overlay
from apps.anomaly_driving.scores import Fitted
from core.errors import AleatorError
from core.progress import progress_bar

Say = Callable[[str], None]


@dataclass(frozen=True)
class Writing:
    """What `score_images` writes.

    Attributes:
        overlays: a picture beside each score file.
        open_set: known classes and "unknown" as a label picture; needs thresholds.
        thresholds: score -> threshold; also where the colours of the overlay turn.
        overwrite: replace files that other settings made.
    """

    overlays: bool = True
    open_set: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    overwrite: bool = False


def score_images(
    network: Network,
    data: Driving,
    names: Sequence[str],
    folder: Path,
    *,
    fits: Mapping[str, Fitted] | None = None,
    writing: Writing | None = None,
    say: Say = print,
) -> list[Path]:
    """Score every image of a data set.

    Args:
        network: model and input size.
        data: images; labels are not looked at.
        names: scores, see `scores.parse`.
        folder: made if it is not there.
        fits: of scores that are fitted.
        writing: what to write.
        say: told of conversions and of what was there already.

    Returns:
        the score files.

    Raises:
        AleatorError: a bad image, a score that the model cannot give, files of other settings.
    """
    writing = writing or Writing()
    if writing.open_set and (missing := set(names) - set(writing.thresholds)):
        raise AleatorError(
            f"--open-set needs a threshold of {', '.join(sorted(missing))}; run calibrate first"
        )
    scorer, known = Scorer(network, names, fits), len(network.model.classes)
    targets = {frame.key: score_files(folder, names, frame.key) for frame in data.frames}
    attributes = made_by(network)
    left = _not_done(data, targets, attributes, writing.overwrite)
    if done := len(data) - len(left):
        say(f"{done} of {len(data)} images are scored already")
    images = Driving(data.root, data.layout, tuple(left), data.track)
    with progress_bar(len(data), "images", done=done) as advance:
        for sample in images.samples(say=say):
            scored = scorer(sample.image, sample.frame.image)
            for name, path in targets[sample.frame.key].items():
                write_pictures(path, sample.image, scored, name, writing, known)
                write_score(path, scored.scores[name], score=name, **attributes)
            advance(1)
    return [path for paths in targets.values() for path in paths.values()]


def score_files(folder: Path, names: Sequence[str], key: str) -> dict[str, Path]:
    """Where the scores of a frame go: a folder for each, if there are several."""
    if len(names) == 1:
        return {names[0]: folder / f"{key}.hdf5"}
    return {name: folder / name / f"{key}.hdf5" for name in names}


def made_by(network: Network) -> dict[str, str]:
    """What a score file says of the model and settings that made it."""
    tiling = network.tiling
    return {
        "model": network.model.fingerprint,
        "longer_side": str(network.longer_side),
        "tiles": f"{tiling.size}, {tiling.overlap}, {tiling.margin}" if tiling else "none",
    }


def _not_done(
    data: Driving,
    targets: Mapping[str, Mapping[str, Path]],
    attributes: Mapping[str, str],
    overwrite: bool,
) -> list[Frame]:
    """Frames that still have to be scored.

    Raises:
        AleatorError: a file in the way that another model or other settings made.
    """
    left = []
    for frame in data.frames:
        finished = True
        for name, path in targets[frame.key].items():
            if not path.exists():
                finished = False
                continue
            made = score_attributes(path)
            same = made == {"score": name, **attributes}
            if not same and not overwrite:
                raise AleatorError(
                    f"{path} is there, of another model or other settings; choose another folder "
                    "or --overwrite"
                )
            finished = finished and same
        if not finished:
            left.append(frame)
    return left


def write_pictures(
    path: Path, image: np.ndarray, scored: Scored, name: str, writing: Writing, known: int
) -> None:
    """The overlay and the open-set labels beside a score file, as far as they are wanted.

    Args:
        path: of the score file.
        image: (H, W, 3) uint8 RGB.
        scored: of the image.
        name: of the score.
        writing: what is wanted.
        known: number of known classes.
    """
    threshold = writing.thresholds.get(name)
    score = scored.scores[name]
    if writing.overlays:
        write_image(path.with_suffix(".png"), overlay(image, score, threshold))
    if writing.open_set and threshold is not None:
        labels = open_set(scored.classes, score, threshold, known)
        write_image(path.with_name(f"{path.stem}_classes.png"), labels)


def open_set(classes: np.ndarray, score: np.ndarray, threshold: float, unknown: int) -> np.ndarray:
    """Known classes (H, W) with `unknown` where score >= threshold."""
    return np.where(score >= np.float16(threshold), np.uint8(unknown), classes)


def frames_per_second(seconds: Iterable[float]) -> float:
    """Images a second, from the median time of an image: a hiccup does not count."""
    times = sorted(seconds)
    if not times:
        return float("nan")
    return 1.0 / max(times[len(times) // 2], 1e-9)
