"""Trains the models that signals are judged on, and keeps of each evaluation what any signal may be computed from.

    python bench/judging/record.py --benchmark digits --kept FOLDER [--processes 2] [--splits 0 1] [--configurations N]

Each configuration is trained on each split. FOLDER/BENCHMARK/CONFIGURATION-SPLIT.npz holds, a row an evaluation and with an axis for the
folds (one without cross-fitting):

- `step`;
- `holdout`, `shots` [evaluation, fold, noising]: the denoising losses of the held-out images and of the images trained on, at noisings that
  are the same for all models of a split; `holdout_image`, `holdout_t`, `shots_image`, `shots_t` [fold, noising] are theirs;
- `samples` uint8 [evaluation, fold, SAMPLES, C, H, W], from the same noise for all models: the first SIGNAL_SAMPLES are for signals, the
  others for the truth, so that a signal gains nothing by chance that its samples and the truth's share;
- `failed`: the reason why there is no further row, or an empty text.

The benchmark `emoji` reads FOLDER/emoji: what `python bench/data/make_emoji.py FOLDER/emoji --size 32` writes, and in `ddpm` the export of
the model that bench/judging/emoji-source.yaml makes.

The source model is configuration `source`, with one row. A run that was stopped goes on where files are missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from numpy.typing import NDArray

from bench.judging.benchmarks import BENCHMARKS, Benchmark
from fewshot_ray.data.target import Fold
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.denoising import DiffusionCandidate, HoldoutLoss
from fewshot_ray.trial.trial import Trial

SOURCE = "source"
SIGNAL_SAMPLES, TRUTH_SAMPLES = 200, 400
Row = dict[str, NDArray[Any]]


def record(benchmark: Benchmark, configuration: str, split: int, kept: Path) -> str:
    """Train one configuration on one split, and write what its evaluations found; returns the file's name."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    failed = ""
    with tempfile.TemporaryDirectory() as scratch:
        number = 0 if configuration == SOURCE else int(configuration)
        spec = compose(Document(benchmark.tree(number, split, Path(scratch), kept / "emoji"), benchmark.name))
        trial = Trial(spec, Folder(scratch) / "trial", Folder(str(kept / "cache")), device=torch.device("cpu"))
        judges = [(evaluator, *_losses(trial, fold)) for evaluator, fold in zip(trial.evaluators, trial.materials.folds, strict=True)]
        noisings = _noisings(trial, judges)
        if configuration == SOURCE:
            source = trial.materials.source_candidate()
            rows.append(_row(0, [source] * len(judges), judges))
        else:
            try:
                for at in trial.evaluations():
                    rows.append(_row(at.step, [trial.materials.candidate(one) for one in trial.trainings], judges, trial))
            except NonFiniteLossError as error:
                failed = str(error)
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
    arrays |= noisings
    arrays["failed"] = np.array(failed)
    path = kept / benchmark.name / f"{configuration}-{split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".tmp"), "wb") as file:
        np.savez_compressed(file, **arrays)
    path.with_suffix(".tmp").rename(path)
    return path.name


def _losses(trial: Trial, fold: Fold) -> tuple[HoldoutLoss, HoldoutLoss]:
    """The loss on a fold's held-out images, and on those it trains on."""

    def of(name: str, part: Fold) -> HoldoutLoss:
        return HoldoutLoss(trial.config, part, seed=trial.spec.file.seed, device=trial.device, group=Group())

    return of("holdout", fold), of("shots", Fold(f"shots of {fold.name}", train=fold.holdout, holdout=fold.train))


def _noisings(trial: Trial, judges: list[Any]) -> Row:
    source = trial.materials.source_candidate()
    assert isinstance(source, DiffusionCandidate)
    found = [[judge.losses(source.backbone, source.network) for judge in pair] for _, *pair in judges]
    arrays = {}
    for index, name in enumerate(("holdout", "shots")):
        arrays[f"{name}_image"] = np.stack([pair[index].image.numpy() for pair in found])
        arrays[f"{name}_t"] = np.stack([pair[index].t.numpy() for pair in found])
    return arrays


def _row(step: int, candidates: list[Candidate], judges: list[Any], trial: Trial | None = None) -> Row:
    losses: dict[str, list[NDArray[Any]]] = {"holdout": [], "shots": []}
    samples = []
    for index, (candidate, (evaluator, holdout, shots)) in enumerate(zip(candidates, judges, strict=True)):
        assert isinstance(candidate, DiffusionCandidate)

        def measure(candidate: DiffusionCandidate = candidate, evaluator: Any = evaluator, judges: Any = (holdout, shots)) -> None:
            for name, judge in zip(losses, judges, strict=True):
                losses[name].append(judge.losses(candidate.backbone, candidate.network).loss.numpy())
            samples.append(evaluator.draw_samples(candidate, SIGNAL_SAMPLES + TRUTH_SAMPLES).cpu().numpy())

        if trial is None:
            measure()
        else:
            with trial.trainings[index].ema.applied():
                measure()
    return {"step": np.array(step), **{name: np.stack(values) for name, values in losses.items()}, "samples": np.stack(samples)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=BENCHMARKS, required=True)
    parser.add_argument("--kept", type=Path, required=True, help="folder of what each run has found")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--splits", type=int, nargs="+", help="only these")
    parser.add_argument("--configurations", type=int, help="only the first so many")
    options = parser.parse_args()
    benchmark = BENCHMARKS[options.benchmark]
    splits = options.splits or list(benchmark.splits)
    names = [SOURCE, *map(str, range(options.configurations or benchmark.configurations))]
    jobs = [(name, split) for split in splits for name in names]
    kept = options.kept.resolve()
    left = [job for job in jobs if not (kept / benchmark.name / f"{job[0]}-{job[1]}.npz").exists()]
    started = time.monotonic()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(record, benchmark, name, split, kept) for name, split in left]
        for count, future in enumerate(as_completed(futures), start=1):
            print(f"{time.monotonic() - started:.0f} s: {count} of {len(left)}: {future.result()}", flush=True)


if __name__ == "__main__":
    main()
