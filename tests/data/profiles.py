"""ICC profiles (version 4, ICC.1:2022) and PNGs of any bit depth, written byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65_XY = (0.3127, 0.3290)
SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""g, a, b, c, d of a parametric curve of type 3."""


def rgb_to_xyz(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Linear RGB with white D65 -> XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = D65_XY
    return np.asarray(columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y]))


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_number(value) for value in values)


def _curve(curve: float | tuple[float, ...]) -> bytes:
    if isinstance(curve, float):
        return b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + _number(curve)
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(_number(value) for value in curve)


def _text(text: str) -> bytes:
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2 * len(text), 28) + text.encode("utf-16-be")


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _text("test"), b"cprt": _text("none"), b"wtpt": _xyz(D50), **tags}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"\0\0\0\0", 0x04400000, kind, space, connection, bytes(12), b"acsp")
    header += bytes(28) + b"".join(_number(value) for value in D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...], curve: float | tuple[float, ...]) -> bytes:
    """Three primaries and one curve, white D65 adapted to the connection space's D50 (Bradford)."""
    matrix = rgb_to_xyz(primaries)
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ matrix.sum(axis=1))) @ BRADFORD
    columns = adapt @ matrix
    tags = {name + b"XYZ": _xyz(columns[:, index]) for index, name in enumerate((b"r", b"g", b"b"))}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {name + b"TRC": _curve(curve) for name in (b"r", b"g", b"b")})


def grey_profile(curve: float) -> bytes:
    """Grey by one curve."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(curve)})


def cmyk_profile(lab: NDArray[np.float64]) -> bytes:
    """Inks by the colours `[2, 2, 2, 2, 3]` (L*, a*, b*) of their full overprints."""
    identity = np.array([0, 65535], ">u2").tobytes()
    encoded = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], axis=-1)  # lut16's own Lab
    table = b"mft2\0\0\0\0" + struct.pack(">BBBx", 4, 3, 2) + b"".join(_number(float(value)) for value in np.eye(3).ravel())
    table += struct.pack(">HH", 2, 2) + identity * 4 + encoded.round().clip(0, 65535).astype(">u2").tobytes() + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(numbers: NDArray[np.integer], depth: int, chunks: bytes = b"") -> bytes:
    """`[H, W, 1 .. 4]` as a PNG of `depth` bits a number; `chunks` stand before its picture."""
    height, width, channels = numbers.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in numbers]
    else:
        bits = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")
