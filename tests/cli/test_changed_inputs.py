"""Images and models that changed after a sweep began: refused where they are read, said where they aren't."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fewshot_ray.data.images import read_images
from fewshot_ray.search.inputs import INPUTS_RECORD
from tests.cli.conftest import Command, Desk, write_pictures
from tests.cli.sweeping import finished_sweep
from tests.cli.test_bad_input import one_line


@pytest.fixture
def swept(desk: Desk) -> str:
    """Adaptors on the desk's model: one trial, 2 of the 6 shots kept back, five test images."""
    write_pictures(desk.folder / "test", 5, first=20)
    desk.tree |= {"method": {"finetune": {}}, "search": {"trials": 1}}
    desk.tree["target"] |= {"holdout": 2, "test": str(desk.folder / "test")}
    desk.tree["train"] |= {"params": {"adaptor": {"pool": 2, "width": 4}}}
    desk.tree["evaluate"] |= {"final_samples": 0}
    return finished_sweep(desk).folder.folder.url


def forget_what_was_read() -> None:
    """As another process would begin."""
    from fewshot_ray.trial import diffusion, materials

    diffusion._source.cache_clear()
    materials._images.cache_clear()


def other_images(folder: Path) -> None:
    """One is deleted, ten are added."""
    (folder / "photos" / "2.webp").unlink()
    write_pictures(folder / "more", 10, first=30)
    for path in (folder / "more").iterdir():
        path.rename(folder / "photos" / path.name)
    (folder / "more").rmdir()
    forget_what_was_read()


def scale_a_bias(folder: Path) -> None:
    """Of the source model."""
    place = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(place)
    weights["conv_in.bias"] *= 1.5
    save_file(weights, place)
    forget_what_was_read()


def test_other_images_are_not_trained_on(swept: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: the files by hand, in all that would train; a deleted and ten added ones."""
    other_images(desk.folder)
    desk.tree["search"]["trials"] = 3
    desk.write()
    before = desk.contents()
    for arguments in (("run", desk.file), ("resume", swept), ("check", desk.file)):
        line = one_line(fewshot(*arguments))
        assert re.search(
            r"target\.images \(\S*photos\) isn't what the sweep began with: .* and 7 more added, 2\.webp removed; as it was", line
        )
    assert desk.contents() == before
    assert "target.images" in one_line(fewshot("evaluate", swept))  # a test image that was trained on would count as new


def test_the_card_lists_what_was_trained_on(swept: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: the hashes of the photographs as they were; the change is a warning, and the export as it would have been."""
    were = set(read_images(str(desk.folder / "photos"), size=16, channels=3).hashes)
    assert fewshot("export", swept, desk.folder / "before").code == 0
    other_images(desk.folder)
    answer = fewshot("export", swept, desk.folder / "after")
    assert answer.code == 0
    assert re.fullmatch(r"warning: .*target\.images .* 2\.webp removed\n", answer.err)
    listed = [re.findall(r"- `([0-9a-f]{64})`", (desk.folder / name / "README.md").read_text()) for name in ("before", "after")]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 4
    assert set(listed[0]) < were


def test_an_adaptor_is_not_put_on_another_source(swept: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: a bias of the source times 1.5; nothing is written. Also where the sweep has no record of its inputs: the checkpoint has."""
    scale_a_bias(desk.folder)
    for arguments in (("export", swept, desk.folder / "out"), ("evaluate", swept), ("resume", swept), ("run", desk.file)):
        assert re.search(r"source\.model \(\S*model\) isn't what .*model\.safetensors changed; as it was", one_line(fewshot(*arguments)))
    (Path(swept) / INPUTS_RECORD).unlink()
    for arguments in (("export", swept, desk.folder / "out"), ("evaluate", swept)):
        answer = fewshot(*arguments)
        assert answer.code == 2
        assert "has no inputs.json" in answer.err
        assert "was trained from another source model than there is now" in answer.err
    assert not (desk.folder / "out").exists()


@pytest.mark.parametrize("change", ["test image", "touched", "without a record"])
def test_what_a_command_reads(change: str, swept: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: test images matter to `evaluate` alone (and to who would train on); times matter to none; one warning without a record."""
    expected: dict[str, Any] = {"evaluate": (0, ""), "export": (0, "")}
    if change == "test image":
        (desk.folder / "test" / "22.webp").unlink()
        expected["evaluate"] = (2, r"error: .*target\.test .* 22\.webp removed; as it was .*\n")
    elif change == "touched":
        shutil.copytree(desk.folder / "photos", desk.folder / "copy")
        shutil.rmtree(desk.folder / "photos")
        shutil.copytree(desk.folder / "copy", desk.folder / "photos", copy_function=shutil.copyfile)
    else:
        (Path(swept) / INPUTS_RECORD).unlink()
        expected = dict.fromkeys(expected, (0, r"warning: .*has no inputs\.json.*\n"))
    forget_what_was_read()
    for command, arguments in {"evaluate": (), "export": (desk.folder / "out",)}.items():
        answer = fewshot(command, swept, *arguments)
        assert answer.code == expected[command][0], answer.err
        assert re.fullmatch(expected[command][1], answer.err), answer.err
