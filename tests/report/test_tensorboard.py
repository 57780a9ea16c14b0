"""The event files, read back with TensorBoard's own readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from fewshot_ray.report.tensorboard import TrialBoard
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder
from fewshot_ray.spec.ranges import Choice
from fewshot_ray.storage import Folder
from tests.search.synthetic import file, finish, open_sweep

ROW = EvaluationRow(40, 1.7e9, {"holdout_loss": 0.25, "kid": 0.5}, 0.3, 1e-5, 800.0, 1.0)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_scalars_stand_at_the_trials_own_steps(tmp_path: Path) -> None:
    """Oracle: TensorBoard's EventAccumulator."""
    with TrialBoard(tmp_path, {"train.lr": 1e-4}) as board:
        for step in (40, 80):
            board.add(replace(ROW, step=step, time=1.7e9 + step))
    read = events(tmp_path)
    assert sorted(read.Tags()["scalars"]) == [
        "holdout_loss",
        "kid",
        "train/images_per_sec",
        "train/loss",
        "train/lr",
        "train/trained_share",
    ]
    assert [(e.step, e.wall_time, e.value) for e in read.Scalars("holdout_loss")] == [(40, 1.7e9 + 40, 0.25), (80, 1.7e9 + 80, 0.25)]
    assert [e.value for e in read.Scalars("train/lr")] == pytest.approx([1e-5, 1e-5])


def test_a_resumed_trial_goes_on_without_duplicates(tmp_path: Path) -> None:
    """Killed after steps 40, 80, 120 with a checkpoint at 80: 120 is made again."""
    killed = TrialBoard(tmp_path, {})
    for step in (40, 80, 120):
        killed.add(replace(ROW, step=step, metrics={"kid": 1.0}))
    killed.close(ended=False)
    with TrialBoard(tmp_path, {}, last_step=80) as board:
        for step in (120, 160):
            board.add(replace(ROW, step=step, metrics={"kid": 2.0}))
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("kid")] == [(40, 1.0), (80, 1.0), (120, 2.0), (160, 2.0)]


def test_a_trial_begun_anew_shows_nothing_of_the_old(tmp_path: Path) -> None:
    TrialBoard(tmp_path, {}).add(ROW)
    with TrialBoard(tmp_path, {}) as board:
        board.add(replace(ROW, step=80))
    assert [e.step for e in events(tmp_path).Scalars("kid")] == [80]


def test_a_grid_comes_back_pixel_for_pixel(tmp_path: Path, sweep: SweepFolder) -> None:
    png = sweep.grid("t0000", 40)
    with TrialBoard(tmp_path, {}) as board:
        board.add_grid(40, png)
    (image,) = events(tmp_path).Images("samples")
    assert image.step == 40
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.png").write_bytes(image.encoded_image_string)
    first, second = (numpy.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("a.png", "b.png"))
    assert numpy.array_equal(first, second)


class HParams:
    """What TensorBoard's own HParams plugin computes over the runs in a folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
        from tensorboard.context import RequestContext
        from tensorboard.plugins.base_plugin import TBContext
        from tensorboard.plugins.hparams import backend_context

        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        self.request = RequestContext()
        self.context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
        metadata = self.context.hparams_metadata(self.request, "")
        self.experiment = self.context.experiment_from_metadata(self.request, "", True, metadata, [])

    def runs(self, *columns: Any) -> list[str]:
        """Those that are shown with filters on these columns."""
        from tensorboard.plugins.hparams import api_pb2, list_session_groups

        statuses = [api_pb2.Status.Value(f"STATUS_{name}") for name in ("SUCCESS", "RUNNING", "FAILURE", "UNKNOWN")]
        ask = api_pb2.ListSessionGroupsRequest(slice_size=100, start_index=0, allowed_statuses=statuses, col_params=columns)
        groups = list_session_groups.Handler(self.request, self.context, "", ask).run().session_groups
        return sorted(group.sessions[0].name for group in groups)


def test_the_hparams_tab_compares_trials_of_different_methods(tmp_path: Path) -> None:
    """Oracle: the experiment and the sessions that TensorBoard's own HParams plugin computes over two runs."""
    trials: dict[str, dict[str, float | str]] = {
        "t0000": {"method.ant.noise_steps": 3, "train.params": "full"},
        "t0001": {"train.lr": 1e-4, "train.flip": "True"},
    }
    for trial_id, params in trials.items():
        with TrialBoard(tmp_path / trial_id, params) as board:
            board.add(ROW)
    shown = HParams(tmp_path)
    names = sorted(info.name for info in shown.experiment.hparam_infos)
    assert names == ["method.ant.noise_steps", "train.flip", "train.lr", "train.params"]
    assert "holdout_loss" in {info.name.tag for info in shown.experiment.metric_infos}
    assert shown.runs() == ["t0000", "t0001"]


def test_every_trial_is_shown_with_all_values_ticked(tmp_path: Path) -> None:
    """Oracle: TensorBoard's HParams plugin, asked for the runs with each of the values that it offers."""
    from tensorboard.plugins.hparams import api_pb2

    mixed = {"gradient_clip": Choice((None, 0.5, 1.0)), "params": Choice(("full", {"lora": {"rank": 2}}))}
    sweep = open_sweep(Folder(tmp_path), file(train=mixed, search={"trials": 8, "sampler": "random", "scheduler": None}))
    ids = finish(sweep)
    shown = HParams(tmp_path / "trials")
    columns = [
        api_pb2.ColParams(hparam=info.name, filter_discrete=info.domain_discrete)
        for info in shown.experiment.hparam_infos
        if info.HasField("domain_discrete")
    ]
    assert {"train.gradient_clip", "train.params"} <= {column.hparam for column in columns}
    assert shown.runs(*columns) == ids
    numbers = {info.name for info in shown.experiment.hparam_infos if info.HasField("domain_interval")}
    assert {"train.lr", "method.ant.noise_step_size", "seed"} <= numbers  # what has one kind keeps it
