"""An export comes whole or not at all, and takes the place of nothing but an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.report.export_folder import CARD, CARD_MARK, export_folder


def export(out: Path, text: str, *, overwrite: bool = False) -> None:
    with export_folder(out, overwrite=overwrite) as staged:
        (staged / "model_index.json").write_text(text)
        (staged / CARD).write_text(CARD_MARK)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_export_is_replaced_whole(tmp_path: Path) -> None:
    """Oracle: the new files and none of the old; refused unless asked for."""
    out = tmp_path / "deep" / "model"
    export(out, "one")
    (out / "old.bin").write_text("old")
    with pytest.raises(UserError, match="an earlier export; another place, or --overwrite"):
        export(out, "two")
    export(out, "two", overwrite=True)
    assert contents(tmp_path) == {"deep/model/model_index.json": "two", f"deep/model/{CARD}": CARD_MARK}


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, OSError])
@pytest.mark.parametrize("moment", ["writing", "moving"])
def test_an_end_in_the_middle_leaves_what_was(
    error: type[BaseException], moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the folder as it was, and nothing beside it."""
    out = tmp_path / "model"
    export(out, "one")
    before = contents(tmp_path)
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if moment == "moving" and self.name == "pipeline":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)

    def ended() -> None:
        with export_folder(out, overwrite=True) as staged:
            (staged / "model_index.json").write_text("two")
            if moment == "writing":
                raise error

    with pytest.raises((error, UserError)):
        ended()
    assert contents(tmp_path) == before


def test_nothing_else_is_taken_away(tmp_path: Path) -> None:
    """Oracle: a thesis is still there, with --overwrite too; and a file where a folder should be."""
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="no earlier export"):
        export(tmp_path, "x", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        export(tmp_path / "thesis.tex", "x", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        export(tmp_path / "thesis.tex" / "model", "x")
    assert contents(tmp_path) == {"thesis.tex": "years"}
