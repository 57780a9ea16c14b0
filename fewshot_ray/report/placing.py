"""Where an exported model goes: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshot_ray.errors import UserError

CARD = "README.md"
CARD_MARK = "fewshot-ray"


@contextmanager
def placed(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write into, which takes its place at `out` when the block ends well.

    Raises UserError where `out` holds something, unless that is an earlier export and `overwrite` is given, and where it can't be written.
    """
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
    """What files and folders below `folder` would have if this process had made them in the plain way.

    safetensors writes for the owner alone, and files that were fetched have the other machine's modes.
    """
    (scratch / "file").touch()
    (scratch / "folder").mkdir()
    file, directory = ((scratch / kind).stat().st_mode & 0o7777 for kind in ("file", "folder"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(directory if path.is_dir() else file)


def _check(out: Path, *, overwrite: bool) -> None:
    """Raise UserError where something would be taken away."""
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
