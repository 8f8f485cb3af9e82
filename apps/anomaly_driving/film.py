"""Scores of a film's frames, smoothed along the motion if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from apps.anomaly_driving.files import write_score
from apps.anomaly_driving.network import Network, Scorer
from apps.anomaly_driving.score import Writing, made_by, score_files, write_pictures
from apps.anomaly_driving.scores import Fitted
from apps.anomaly_driving.video import Flicker, Smoother, motion, read_video
from core.errors import AleatorError


def score_film(
    network: Network,
    film: Path,
    names: Sequence[str],
    folder: Path,
    *,
    fits: Mapping[str, Fitted] | None = None,
    writing: Writing | None = None,
    weight: float = 1.0,
) -> tuple[list[Path], dict[str, tuple[float, float]]]:
    """Score every frame of a film, DIR/000000.hdf5 and so on.

    The memory of the smoothing goes from frame to frame: a film is scored in one go, and what is
    in its folder is replaced only if that is wanted.

    Args:
        network: model and input size.
        film: file that OpenCV reads.
        names: scores.
        folder: made if it is not there.
        fits: of scores that are fitted.
        writing: what to write.
        weight: of the newest frame; 1 for no smoothing.

    Returns:
        the score files, and of each score its flicker before and after (empty for one frame).

    Raises:
        AleatorError: a bad film, or scores are there already.
    """
    writing = writing or Writing()
    first = next(iter(score_files(folder, names, _key(0)).values()))
    if first.exists() and not writing.overwrite:
        raise AleatorError(f"{first} exists; choose another folder or --overwrite")
    scorer, attributes = Scorer(network, names, fits), made_by(network)
    attributes["smooth"] = str(weight)
    smoothers = {name: Smoother(weight) for name in names}
    flicker = {name: (Flicker(), Flicker()) for name in names}
    written: list[Path] = []
    last: np.ndarray | None = None
    for i, frame in enumerate(read_video(film)):
        moved = None if last is None else motion(frame, last)
        last = frame
        scored = scorer(frame, f"{film}, frame {i}")
        for name, path in score_files(folder, names, _key(i)).items():
            raw = scored.scores[name]
            scored.scores[name] = smoothers[name](raw, moved)
            for counted, value in zip(flicker[name], (raw, scored.scores[name]), strict=True):
                counted.add(value, moved)
            write_pictures(path, frame, scored, name, writing, len(network.model.classes))
            write_score(path, scored.scores[name], score=name, **attributes)
            written.append(path)
    if len(written) == len(names):
        return written, {}
    return written, {name: (a.value(), b.value()) for name, (a, b) in flicker.items()}


def _key(index: int) -> str:
    return f"{index:06d}"
