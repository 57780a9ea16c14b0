"""The stamp of a value: what it depends on, and nothing else."""

from __future__ import annotations

import pytest

from fewshot_ray.metrics import METRICS
from fewshot_ray.metrics.stamp import AGAINST, Setting, against, stamp
from fewshot_ray.metrics.suite import NETWORKS
from fewshot_ray.report.stamps import stamp_lines

MEASURED: dict[str, Setting] = {
    "seed": 3,
    "n_generated": 100,
    "loss_draws": 256,
    "sampler": "ddim",
    "sampler_steps": 50,
    "protocol": "clean",
    "n_real": 20,
    "n_train": 10,
    "intra_cap": 50,
    "extractor": "net",
    "extractor_weights": "abc",
    "resize": "none",
    "perceptual": "lpips",
    "perceptual_weights": "def",
    "perceptual_resize": "to 256x256",
    **{f"{name}{suffix}": f"{name}'s" for name in NETWORKS for suffix in ("", "_weights", "_resize")},
}
NETWORK = {"features": "extractor", "perceptual": "perceptual", "loss": "loss_draws", **{name: name for name in NETWORKS}}


@pytest.mark.parametrize("metric", METRICS)
def test_a_stamp_has_what_the_value_depends_on(metric: str) -> None:
    """Oracle: the registry's own account of what a metric needs and compares with."""
    found, compared = stamp(metric, MEASURED), against(metric)
    assert {"seed", "protocol"} <= found.keys()
    parts = [METRICS[part] for part in METRICS[metric].made_of or (metric,)]
    assert {name for name in NETWORK.values() if name in found} == {NETWORK[part.needs] for part in parts}
    assert ("sampler" in found, "n_generated" in found) == (any(part.of_samples for part in parts),) * 2
    assert ("n_real" in found) == ("held-out" in compared)
    assert ("n_train" in found) == ("training" in compared)
    assert ("n_real" in found) >= (METRICS[metric].real_images > 0)


def test_what_is_listed_is_registered() -> None:
    assert AGAINST.keys() <= METRICS.keys()


def test_the_foot_of_a_table_says_every_setting() -> None:
    """Oracle: each value of the stamps is in the lines."""
    metrics = ("kid", "intra_distance", "holdout_loss", "pairwise_lpips", "sfid", "fd_dinov2", "cmmd")
    text = "\n".join(stamp_lines(stamp(name, MEASURED) for name in metrics))
    assert all(str(value) in text for value in MEASURED.values())
    assert "lpips" not in "\n".join(stamp_lines([stamp("kid", MEASURED)]))
