"""Where the scores of a benchmark come from: a network, or files that any program wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from apps.anomaly_driving.data import Driving, Sample
from apps.anomaly_driving.files import read_score
from apps.anomaly_driving.network import Scored, Scorer
from core.errors import AleatorError


class Source(Protocol):
    """Where scores come from."""

    names: tuple[str, ...]

    def __call__(self, sample: Sample) -> Scored:
        """Scores of a frame at its own size."""
        ...


class FromNetwork:
    """Scores computed by a network."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.names = scorer, scorer.names
        self.classes = scorer.network.model.classes

    def __call__(self, sample: Sample) -> Scored:
        """Scores of a frame at its own size."""
        return self.scorer(sample.image, sample.frame.image)


class FromFiles:
    """Scores in files, of any program: DIR/NAME/KEY.hdf5, or DIR/KEY.hdf5 for a single score.

    KEY is that of the frame, or the last part of it where that tells all frames apart.
    """

    ENDINGS = (".hdf5", ".h5", ".npy", ".npz")
    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, data: Driving, names: Sequence[str] = ()) -> None:
        """Look for scores.

        Args:
            folder: of the files.
            data: whose frames are scored.
            names: of the scores; the folders that are there if none.

        Raises:
            AleatorError: no such folder, or no scores in it.
        """
        if not folder.is_dir():
            raise AleatorError(f"{folder}: no such folder of score files")
        self.folder = folder
        keys = [frame.key for frame in data.frames]
        self.short = len({Path(key).name for key in keys}) == len(keys)
        below = [f.name for f in sorted(folder.iterdir()) if f.is_dir() and self._any(f)]
        single = any(self._find(folder, key) for key in keys)
        self.names = tuple(names or ((folder.name,) if single or not below else below))
        self.places = {name: self._place(name, single) for name in self.names}
        if not below and not self._any(folder):
            raise AleatorError(
                f"{folder}: no score files in it ({', '.join(self.ENDINGS)}); `score -o {folder}` "
                "makes them"
            )

    def __call__(self, sample: Sample) -> Scored:
        """Scores of a frame; the size of the file must be that of the image."""
        scores = {name: self._read(place, sample) for name, place in self.places.items()}
        return Scored(scores, np.zeros(sample.size, np.uint8))

    def _place(self, name: str, single: bool) -> Path:
        """Where the files of a score are."""
        place = self.folder / name
        if place.is_dir() and not single:
            return place
        if len(self.names) > 1:
            there = ", ".join(sorted(f.name for f in self.folder.iterdir() if f.is_dir()))
            raise AleatorError(
                f"{self.folder}: no folder of score {name} in it; it has {there or 'none'}"
            )
        return self.folder

    def _read(self, place: Path, sample: Sample) -> np.ndarray:
        key = sample.frame.key
        path = self._find(place, key)
        if path is None:
            raise AleatorError(
                f"{place / key}{self.ENDINGS[0]}: no score of frame {key}; score all frames, "
                "under these names"
            )
        return read_score(path, sample.size)

    def _find(self, place: Path, key: str) -> Path | None:
        stems = dict.fromkeys((key, Path(key).name) if self.short else (key,))
        candidates = (place / f"{stem}{end}" for stem in stems for end in self.ENDINGS)
        return next((path for path in candidates if path.exists()), None)

    def _any(self, folder: Path) -> bool:
        return any(path.suffix in self.ENDINGS for path in folder.rglob("*"))


class Spool:
    """Scores on disk between the passes, up to a budget; what does not fit is not kept."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.left = folder, budget
        self.there: dict[str, int] = {}

    def put(self, key: str, scored: Scored) -> None:
        """Keep the scores of a frame, if there is room."""
        arrays = {f"score {name}": value for name, value in scored.scores.items()}
        size = sum(value.nbytes for value in arrays.values()) + scored.classes.nbytes
        if size > self.left:
            return
        self.left -= size
        self.there[key] = len(self.there)
        np.savez(self._path(key), allow_pickle=False, classes=scored.classes, **arrays)

    def get(self, key: str) -> Scored | None:
        """Scores of a frame, if they were kept."""
        if key not in self.there:
            return None
        with np.load(self._path(key)) as kept:
            names = [name for name in kept.files if name.startswith("score ")]
            return Scored({name[6:]: kept[name] for name in names}, kept["classes"])

    def _path(self, key: str) -> Path:
        return self.folder / f"{self.there[key]}.npz"
