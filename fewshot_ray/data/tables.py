"""Parquet files with a column of encoded images: a single file or the shards of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from fewshot_ray.data.selection import PICTURE
from fewshot_ray.errors import UserError
from fewshot_ray.spec.places import COLUMN

IMAGE_COLUMN_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LOOKED_AT_ROWS = 64
"""Rows of each column that are read to recognise its content."""


class Picture(NamedTuple):
    """A picture as stored: `content` is the encoded file, or `problem` the reason why there is none."""

    name: str
    content: bytes
    problem: str = ""


def rows(place: str, file: IO[bytes], column: str | None, *, shard: str = "") -> Iterator[Picture]:
    """Every image of a Parquet file, row by row; `shard`: its name, if one of several. Raises UserError where the column isn't unique."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    chosen = image_columns(place, table, column)[0]
    row = 0
    for batch in table.iter_batches(batch_size=64, columns=[chosen]):
        for value in batch.column(0).to_pylist():
            path = value.get("path") if isinstance(value, dict) else None
            name = f"{shard} row {row}".lstrip() + (f" ({path})" if path else "")
            content = _content(value)
            yield Picture(name, content) if content else Picture(name, b"", "holds no bytes")
            row += 1


def image_columns(place: str, table: Any, column: str | None) -> list[str]:
    """The column that is read, followed by the other columns of images. Raises UserError.

    It is `column` where given; else the only one whose values are images, or the only one of those with a usual name.
    """
    typed = [field.name for field in table.schema_arrow if _may_hold_images(field.type)]
    if column is not None:
        if column not in typed:
            raise UserError(f"images {place}: no column {column!r} with images; {_right(typed)}")
        return [column, *(name for name in typed if name != column and _holds_images(table, name))]
    if not typed:
        columns = ", ".join(f"{field.name}: {field.type}" for field in table.schema_arrow) or "none"
        raise UserError(
            f"images {place}: no column holds images (columns: {columns}); a binary column of PNG, JPEG or WebP files, "
            "or a struct with such a field `bytes`, is right"
        )
    found = [name for name in typed if _holds_images(table, name)] or typed
    usual = [name for name in found if name.lower() in IMAGE_COLUMN_NAMES]
    chosen = found if len(found) == 1 else usual
    if len(chosen) != 1:
        raise UserError(f"images {place}: {len(found)} columns hold images ({', '.join(found)}); {_right(found)}")
    return [*chosen, *(name for name in found if name not in chosen)]


def _right(columns: list[str]) -> str:
    if not columns:
        return "none holds any"
    return f"one of them by name, PLACE{COLUMN}{columns[0]} say, is right"


def _may_hold_images(kind: Any) -> bool:
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    if types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    return holds_bytes(kind)


def _holds_images(table: Any, column: str) -> bool:
    """Whether the first non-empty value of a column is an image."""
    batch = next(table.iter_batches(batch_size=LOOKED_AT_ROWS, columns=[column]), None)
    first = next(filter(None, map(_content, batch.column(0).to_pylist())), b"") if batch is not None else b""
    return bool(PICTURE.match(first))


def _content(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""
