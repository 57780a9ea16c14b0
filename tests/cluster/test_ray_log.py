"""Where Ray's own words go while a sweep runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from uuid import uuid4

import pytest

from fewshot_ray.cluster.ray_log import RAY_LOG, RAY_LOGGER, ray_log
from fewshot_ray.storage import Folder

WALL = "Trial errored\n" + "Traceback: a line\n" * 40
TUNE = logging.getLogger("ray.tune.execution.tune_controller")


def test_rays_words_go_to_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Oracle: what two loggers below Ray's were told is in the file, after what an earlier run left, and nothing on the terminal."""
    before = logging.getLogger("ray").handlers[:]
    for run in range(2):
        with ray_log(Folder(tmp_path)) as again:
            logging.getLogger("ray").handlers.clear()  # as `ray.init` does
            again()
            TUNE.error("%s in run %d", WALL, run)
            RAY_LOGGER.error("t0000 lost its worker: %s", WALL)
    text = (tmp_path / RAY_LOG).read_text()
    assert text.count("a line") == 160
    assert text.index("in run 0") < text.index("in run 1")
    assert text.count("ERROR ray.fewshot_ray: t0000 lost its worker") == 2
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("ray").handlers == before


def test_no_words_no_file(tmp_path: Path) -> None:
    """Oracle: a folder that nothing was written to."""
    with ray_log(Folder(tmp_path)):
        TUNE.debug("nothing of note")
    assert not os.listdir(tmp_path)


def test_a_remote_folder_gets_it_at_the_end() -> None:
    """Oracle: both runs' lines in fsspec's memory."""
    folder = Folder(f"memory://{uuid4().hex}")
    for run in range(2):
        with ray_log(folder):
            TUNE.error("run %d", run)
    lines = folder.read_text(RAY_LOG).splitlines()
    assert [line[-5:] for line in lines] == ["run 0", "run 1"]


def test_a_disk_that_takes_no_log_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Oracle: silence, since the sweep's own writes say it; /dev/full refuses every byte as a full disk does."""
    (tmp_path / RAY_LOG).symlink_to("/dev/full")
    with ray_log(Folder(tmp_path)):
        TUNE.error("lost")
    with ray_log(Folder(tmp_path / "no" / "such" / "folder")):
        TUNE.error("lost")
    assert capfd.readouterr() == ("", "")
