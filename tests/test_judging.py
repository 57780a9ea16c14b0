"""bench/judging: its signals, its truths' style, and its statistics of signals against truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.judging.benchmarks import BENCHMARKS
from bench.judging.judging import Models, correlation, judged, kept_coverage, regret
from bench.judging.signals import Losses, energy_distance, own_neighbours
from fewshot_ray.metrics.noise_levels import band_values
from fewshot_ray.spec.document import Document
from fewshot_ray.trial.compose import compose


def models(**values: list[float]) -> Models:
    """Six models of three configurations, whose truths are by hand."""
    truths = {
        "truth: kid": [5.0, 4.0, 3.0, 2.0, 6.0, 7.0],
        "truth: coverage": [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],
        "truth: copied": [0.0, 0.0, 0.1, 0.2, 0.6, 0.0],
        "truth: style": [0.5, 0.9, 1.0, 1.0, 1.0, 0.1],
        "truth: unseen": [0.1] * 6,
    }
    found = {name: np.array(column) for name, column in {**truths, **{f"signal: {key}": one for key, one in values.items()}}.items()}
    return Models(np.array([0, 0, 1, 1, 2, 2]), found)


def test_statistics_of_the_chosen_model() -> None:
    """Oracle: by hand; the signal chooses the fourth model, whose style only the third, fourth and fifth reach."""
    ours = models(ours=[3.0, 2.0, 1.0, 0.0, 4.0, 5.0])
    everything = np.arange(6)
    assert correlation("kid")(ours, everything, "ours") == pytest.approx(1.0)
    assert regret("kid")(ours, everything, "ours") == 0
    assert regret("coverage")(ours, everything, "ours") == pytest.approx(0.1)
    assert regret("copied")(ours, everything, "ours") == pytest.approx(0.2)
    assert kept_coverage(ours, everything, "ours") == pytest.approx(0.4 / 0.5)
    assert regret("kid")(ours, np.array([0, 1, 4, 5]), "ours") == 0


def test_intervals_are_over_configurations() -> None:
    """Oracle: of a perfect signal every resample of configurations has rank correlation 1, of one that never varies 0."""
    split = models(perfect=[5.0, 4.0, 3.0, 2.0, 6.0, 7.0], constant=[1.0] * 6)
    perfect, constant = (judged([split, split], name, 20)["rank correlation, kid"] for name in ("perfect", "constant"))
    assert [perfect[key] for key in ("value", "low", "high")] == pytest.approx([1, 1, 1])
    assert [constant[key] for key in ("value", "low", "high")] == [0, 0, 0]


def test_the_relative_losses_are_the_products_own() -> None:
    """Oracle: fewshot_ray.metrics.noise_levels over the same losses; float32's rounding of none, as the edges are the same."""
    random = np.random.default_rng(0)
    log_snr = random.uniform(-9, 8, 500)
    losses = Losses(random.uniform(1, 2, 500), random.uniform(1, 2, 500), log_snr, np.arange(500) % 10)
    own = band_values(torch.from_numpy(losses.loss), torch.from_numpy(log_snr), torch.from_numpy(losses.source))
    assert losses.relative(-2, 0) == pytest.approx(own["relative_content"])
    assert losses.relative(-2, 1) == pytest.approx(own["relative_loss"])
    assert losses.of_images(3).image.max() == 2


def test_two_sample_signals() -> None:
    """Oracle: by hand on a line; sets far apart have their own kind for neighbours, a set against itself shifted by nothing does not."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]])
    assert energy_distance(x, y) == pytest.approx(2 * 10 - 2 - 2)
    assert own_neighbours(x, y) == 1
    assert own_neighbours(torch.tensor([[0.1], [5.1]]), torch.tensor([[0.0], [5.0]])) == 0


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "emoji"])
def test_every_configuration_is_a_valid_trial(name: str, tmp_path: object) -> None:
    """Oracle: the checks that a run's file goes through; the development splits are among all."""
    benchmark = BENCHMARKS[name]
    assert set(benchmark.development) < set(benchmark.splits)
    for number in range(benchmark.configurations):
        spec = compose(Document(benchmark.tree(number, 0, tmp_path, tmp_path), name))  # type: ignore[arg-type]
        assert spec.file.evaluate.metrics == ["holdout_loss"]
