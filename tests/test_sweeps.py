"""Every file in sweeps/ is valid as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.spec.document import read_document
from fewshot_ray.trial.compose import check_document, compose, plain, preset_values, with_values

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_valid(path: Path) -> None:
    """Oracle: the checks that `run` makes, at both ends of every range; its name is its file's."""
    document, file = check_document(read_document(path))
    assert file.name == path.stem
    preset = preset_values(document)
    compose(with_values(document, preset))
    compose(with_values(plain(document), {key: value for key, value in preset.items() if not key.startswith("method.")}))


def test_readme_shows_the_file() -> None:
    """Oracle: sweeps/ten-images.yaml without its opening comment, to the letter."""
    root = Path(__file__).parents[1]
    block = (root / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    shipped = (root / "sweeps" / "ten-images.yaml").read_text().splitlines(keepends=True)
    assert block == "".join(line for line in shipped if not line.startswith("# "))
