"""The stamps of values in words: what they were measured with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fewshot_ray.search.leaderboard import LeaderboardRow
from fewshot_ray.search.sweep_folder import SweepFolder

COUNTS = {"n_generated": "generated", "n_real": "held-out", "n_train": "training"}
NETWORKS = {"extractor": "resize", **{name: f"{name}_resize" for name in ("perceptual", "inception", "dinov2", "clip")}}
"""By network the setting with its resize."""

Setting = str | int | float | bool


def sweep_stamps(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> list[str]:
    """What the metrics of a leaderboard are measured with; empty before the first evaluation, and for a sweep of an older release."""
    measured = sorted((row for row in rows if row.values), key=lambda row: not row.won)
    return stamp_lines(sweep.stamps(measured[0].trial.id).values()) if measured else []


def stamp_lines(stamps: Iterable[Mapping[str, Setting]]) -> list[str]:
    """Several metrics' stamps together, for the foot of a table: on protocol and images, sampling, each network, the rest."""
    settings: dict[str, Setting] = {}
    for one in stamps:
        settings |= one
    images = [f"{settings[key]} {word}" for key, word in COUNTS.items() if key in settings]
    first = [f"protocol {settings['protocol']}"] if "protocol" in settings else []
    first += [f"images: {', '.join(images)}"] if images else []
    first += [f"means over {settings['folds']} folds"] if "folds" in settings else []
    lines = ["; ".join(first), ", ".join(_sampling(settings))]
    for key, resize in NETWORKS.items():
        if key in settings:
            lines.append(f"{settings[key]} (weights {settings.get(f'{key}_weights')}, resize: {settings.get(resize)})")
    return [line for line in [*lines, ", ".join(_others(settings))] if line]


def _sampling(settings: Mapping[str, Setting]) -> list[str]:
    words = [str(settings["sampler"])] if "sampler" in settings else []
    words += [f"{settings['sampler_steps']} steps"] if "sampler_steps" in settings else []
    words += [f"guidance scale {settings['guidance_scale']}"] if "guidance_scale" in settings else []
    return words + ([f"seed {settings['seed']}"] if "seed" in settings else [])


def _others(settings: Mapping[str, Setting]) -> list[str]:
    words = [f"{settings['loss_draws']} draws of the loss"] if "loss_draws" in settings else []
    words += [f"{settings['paths']} paths"] if "paths" in settings else []
    words += [f"clusters of at most {settings['intra_cap']} images"] if "intra_cap" in settings else []
    return words + (["fd's reference with the images trained on"] if settings.get("shots_in_reference") else [])
