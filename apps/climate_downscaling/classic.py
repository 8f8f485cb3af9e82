"""How long a classic NetCDF file must be, from its header.

Libraries read zeros where a classic (NetCDF-3) file was cut short, and zeros look like data; so
the length is checked before anything is read. Layout: the NetCDF classic format specification.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}


def expected_size(path: Path) -> int:
    """Bytes that the variables of a classic file need.

    Args:
        path: a file that starts with "CDF".

    Returns:
        the end of the last value; the file is whole if it is at least this long.

    Raises:
        EOFError: the header itself was cut short.
        ValueError: the header makes no sense.
    """
    with path.open("rb") as file:
        return _Header(file).expected_size()


class _Header:
    """Reads the header in order; each method consumes what it is named after."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        version = self.take(4)[3]
        if version not in (1, 2, 5):
            raise ValueError(f"unknown classic format {version}")
        self.count_format = ">q" if version == 5 else ">i"
        self.offset_format = ">i" if version == 1 else ">q"

    def take(self, size: int) -> bytes:
        data = self.file.read(size)
        if size < 0 or len(data) < size:
            raise EOFError("the header was cut short")
        return data

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def count(self) -> int:
        return self.number(self.count_format)

    def name(self) -> None:
        self.take(_padded(self.count()))

    def entries(self) -> int:
        self.number(">i")  # tag
        return self.count()

    def attributes(self) -> None:
        for _ in range(self.entries()):
            self.name()
            kind = self.number(">i")
            self.take(_padded(self.count() * _BYTES[kind]))

    def expected_size(self) -> int:
        records = max(self.count(), 0)  # -1: written as a stream, the length decides
        lengths = []
        for _ in range(self.entries()):
            self.name()
            lengths.append(self.count())
        self.attributes()
        fixed: list[tuple[int, int]] = []
        recorded: list[tuple[int, int]] = []
        for _ in range(self.entries()):
            self.name()
            shape = [lengths[self.count()] for _ in range(self.count())]
            self.attributes()
            kind = self.number(">i")
            self.count()  # the size stored here overflows for large variables
            begin = self.number(self.offset_format)
            is_record = bool(shape) and shape[0] == 0
            size = math.prod(shape[is_record:]) * _BYTES[kind]
            (recorded if is_record else fixed).append((begin, size))
        ends = [begin + size for begin, size in fixed]
        stride = sum(_padded(size) for _, size in recorded)
        if len(recorded) == 1:
            stride = recorded[0][1]
        if records:
            ends += [begin + (records - 1) * stride + size for begin, size in recorded]
        return max(ends, default=self.file.tell())


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4
