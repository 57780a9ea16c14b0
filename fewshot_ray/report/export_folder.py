"""Writes an export's folder atomically, and never over anything but an earlier export."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshot_ray.errors import UserError

CARD = "README.md"
CARD_MARK = "fewshot-ray"


@contextmanager
def export_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Context with a new folder to write into, which is renamed to `out` if the block succeeds."""
    _check(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            staged, before = Path(temporary) / "pipeline", Path(temporary) / "before"
            staged.mkdir()
            yield staged
            try:
                if out.exists():
                    out.rename(before)
                _give_modes(staged, Path(temporary))
                staged.rename(out)
            except BaseException:
                if before.exists():
                    before.rename(out)
                raise
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); a folder that you may write to would be right") from error


def _give_modes(folder: Path, scratch: Path) -> None:
    """Give the files and folders below `folder` the modes of newly made ones.

    safetensors writes files that only the owner can read, and downloaded ones have another machine's modes.
    """
    (scratch / "file").touch()
    (scratch / "folder").mkdir()
    file, directory = ((scratch / kind).stat().st_mode & 0o7777 for kind in ("file", "folder"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(directory if path.is_dir() else file)


def _check(out: Path, *, overwrite: bool) -> None:
    """Raise UserError where `out` has content that may not be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; a folder that isn't there yet would be right")
    if not any(out.iterdir()):
        return
    card = out / CARD
    if not (out / "model_index.json").is_file() or not card.is_file() or CARD_MARK not in card.read_text(errors="replace"):
        raise UserError(f"{out}: holds something that is no earlier export; another place would be right")
    if not overwrite:
        raise UserError(f"{out}: holds an earlier export; another place, or --overwrite, would be right")
