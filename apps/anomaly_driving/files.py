"""Files of images, labels and scores: decoded whole and as they are, or refused in one line.

Decoders are lenient: a JPEG that was cut short comes back with a grey lower half, a palette as
colours. Here such files are refused, since nobody would see it in a table of figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import AleatorError
from core.report import replacing

HDF5 = b"\x89HDF\r\n\x1a\n"
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        note: what was converted on the way; "" if nothing.
    """

    pixels: np.ndarray
    note: str = ""


def read_image(path: Path | str) -> Picture:
    """Decode an image to 8-bit RGB; EXIF orientation of JPEG is applied.

    Grey images are repeated in three channels and an alpha channel is dropped, both with a note.

    Raises:
        AleatorError: missing, empty, not an image, cut short, 16-bit or floating point.
    """
    import cv2

    data = _read(path)
    jpeg = data[:2] == b"\xff\xd8"
    # IMREAD_UNCHANGED would ignore the orientation, which only JPEG carries in practice
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if jpeg else cv2.IMREAD_UNCHANGED
    raw = _decode(path, data, flags)
    if raw.dtype != np.uint8:
        raise AleatorError(
            f"{path}: {raw.dtype} pixels; their scale is not known, convert the image to 8 bits"
        )
    if raw.ndim == 2:
        return Picture(np.repeat(raw[..., None], 3, 2), "grey, taken as RGB with equal channels")
    if raw.shape[2] == 4:
        return Picture(cv2.cvtColor(raw, cv2.COLOR_BGRA2RGB), "alpha channel left out")
    return Picture(cv2.cvtColor(raw, cv2.COLOR_BGR2RGB))


def read_label(path: Path | str) -> np.ndarray:
    """Ids (H, W) uint8 of a label file.

    Raises:
        AleatorError: missing, damaged, or ids are not in one 8-bit channel.
    """
    import cv2

    raw = _decode(path, _read(path), cv2.IMREAD_UNCHANGED)
    if raw.dtype != np.uint8:
        raise AleatorError(f"{path}: {raw.dtype} labels; write ids in one 8-bit channel")
    if raw.ndim == 3:
        if raw.shape[2] >= 3 and not (raw[..., :1] == raw[..., :3]).all():
            raise AleatorError(
                f"{path}: a colour or palette picture; labels are ids in one 8-bit channel"
            )
        raw = raw[..., 0]
    return np.ascontiguousarray(raw)


def image_size(path: Path | str) -> tuple[int, int]:
    """(H, W) of an image."""
    height, width = read_image(path).pixels.shape[:2]
    return height, width


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W, 3) RGB or (H, W), in the format of the suffix; atomically."""
    import cv2

    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, coded = cv2.imencode(path.suffix, bgr)
    if not done:
        raise AleatorError(f"{path}: cannot write images of this kind; name it .png")
    with replacing(path) as draft:
        draft.write_bytes(coded.tobytes())


def as_float16(score: np.ndarray, what: object) -> np.ndarray:
    """Scores (H, W) as float16, as they are stored and judged.

    Raises:
        AleatorError: not a plane of finite values within the range of float16.
    """
    if score.ndim != 2:
        raise AleatorError(f"{what}: scores of shape {score.shape}; one value a pixel, (H, W)")
    if not np.isfinite(score).all():
        bad = int((~np.isfinite(score)).sum())
        raise AleatorError(
            f"{what}: {bad} of {score.size} scores are NaN or infinite; the network diverged, or "
            "its input is not an image in [0, 1]"
        )
    largest = float(np.abs(score).max(initial=0.0))
    if largest > LARGEST:
        raise AleatorError(
            f"{what}: a score of {largest:.3g} does not fit float16; divide the logits by a "
            "temperature"
        )
    return score.astype(np.float16, copy=False)


def write_score(path: Path, value: np.ndarray, **attributes: str) -> None:
    """Write `value`, (H, W) float16, as the SegmentMeIfYouCan toolkit reads it; atomically."""
    import h5py

    value = as_float16(value, path)
    with replacing(path) as draft, h5py.File(draft, "w") as file:
        stored = file.create_dataset("value", data=value, compression="gzip", compression_opts=4)
        stored.attrs.update(attributes)


def read_score(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Scores (H, W) float16 of a file: `.hdf5` with dataset `value`, `.npy` or `.npz`.

    Args:
        path: file.
        size: (H, W) of the image; not checked if None.

    Raises:
        AleatorError: missing, damaged, of another size, transposed, not finite.
    """
    value = _score_array(path)
    if value.ndim == 3 and 1 in (value.shape[0], value.shape[2]):
        value = value.squeeze(0 if value.shape[0] == 1 else 2)
    if size is not None and value.shape != size:
        turned = "; it is transposed" if value.shape == size[::-1] else ""
        raise AleatorError(
            f"{path}: scores of size {'×'.join(map(str, value.shape))} for an image of "
            f"{size[0]}×{size[1]} (rows × columns){turned}; score the image at its own size"
        )
    return as_float16(value, path)


def score_attributes(path: Path) -> dict[str, str]:
    """What a score file says of itself; empty if it cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return {key: str(value) for key, value in file["value"].attrs.items()}
    except (OSError, KeyError):
        return {}


def _score_array(path: Path) -> np.ndarray:
    data = _read(path)
    try:
        if data.startswith(HDF5):
            import h5py

            with h5py.File(path, "r") as file:
                if "value" not in file:
                    raise AleatorError(
                        f"{path}: no dataset 'value' in it (it has {', '.join(file) or 'nothing'})"
                    )
                return file["value"][...]
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        return loaded["value"] if "value" in loaded else loaded[loaded.files[0]]
    except (OSError, ValueError, EOFError, IndexError) as error:
        if isinstance(error, AleatorError):
            raise
        raise AleatorError(
            f"{path}: not a score file (.hdf5 with dataset value, .npy, .npz), or cut short"
        ) from None


def _read(path: Path | str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise AleatorError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise AleatorError(f"{path}: a folder, not a file") from None
    if not data:
        raise AleatorError(f"{path}: the file is empty")
    return data


def _decode(path: Path | str, data: bytes, flags: int) -> np.ndarray:
    import cv2

    if cut := _cut_short(data):
        raise AleatorError(f"{path}: {cut} that was cut short; copy it again")
    try:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        raw = None
    if raw is None:
        raise AleatorError(f"{path}: not an image that OpenCV can read, or damaged")
    return raw


def _cut_short(data: bytes) -> str:
    """The kind of file whose end is missing; "" if the end is there."""
    if data[:2] == b"\xff\xd8":  # the end marker comes after the last scan begins
        return "" if data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") else "a JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "" if b"IEND" in data[-64:] else "a PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "" if len(data) >= int.from_bytes(data[4:8], "little") + 8 else "a WebP"
    return ""
