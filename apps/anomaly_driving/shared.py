"""Frames that two folders share: what was trained or chosen on must not be judged on.

Files are compared by their contents, not their names: copies under another name are found, a frame
that was encoded again is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from apps.anomaly_driving.model import APP
from core.checkpoint import load_checkpoint
from core.errors import AleatorError

SEEN = "seen"
"""Where a checkpoint's notes keep the digests of the frames that it was trained on."""


def digests(files: Iterable[Path]) -> list[str]:
    """12 hexadecimal digits of the contents of each file."""
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files]


def shared(files: Sequence[Path], others: Iterable[str]) -> list[Path]:
    """Those of the files whose contents are among `others`, digests."""
    known = set(others)
    return [file for file, digest in zip(files, digests(files), strict=True) if digest in known]


def must_not_share(files: Sequence[Path], others: Sequence[Path], purpose: str) -> None:
    """Refuse frames that are in both places.

    Args:
        files: what is judged.
        others: what was trained or chosen on.
        purpose: of the others, for the message.

    Raises:
        AleatorError: there are such frames.
    """
    if both := shared(files, digests(others)):
        raise AleatorError(
            f"{both[0]}: {len(both)} of {len(files)} frames are also among those that {purpose}; "
            "judge on others"
        )


def trained_on(model: Path | None, files: Sequence[Path]) -> list[Path]:
    """Those of the files that a model of ours was trained on, as far as it remembers."""
    if model is None or not model.is_dir():
        return []
    notes = load_checkpoint(model, app=APP).config.get("notes", {})
    return shared(files, notes[SEEN]) if SEEN in notes else []
