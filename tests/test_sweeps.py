"""Every file in sweeps/ is valid as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.spec.document import parse_document, read_document
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


def test_readme_example_is_valid() -> None:
    """Oracle: the same checks, on the YAML block of the README as it stands there."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.split("```yaml\n")[1].split("```")[0]
    check_document(parse_document(block, "README.md"))
