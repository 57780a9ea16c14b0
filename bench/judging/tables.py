"""From what record.py kept, a table of signals and truths: a row a model.

    python bench/judging/tables.py --kept FOLDER [--benchmark digits]

Writes bench/judging/tables/BENCHMARK.parquet: `split`, `configuration` (-1 is the source model), `step`; `signal: NAME`, of ten held-out
images and of samples; `truth: NAME`, of other samples and the test split. With cross-fitting the losses of all folds are pooled and the
values of samples are means over the folds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.judging.benchmarks import BENCHMARKS, Benchmark
from bench.judging.record import SIGNAL_SAMPLES, SOURCE
from bench.judging.signals import FEW_SAMPLES, Losses, few_image_signals, loss_signals, sample_signals, truths
from bench.judging.style import shares
from fewshot_ray.data.target import Fold
from fewshot_ray.metrics.extractors import Extractor, load_extractor
from fewshot_ray.models.source import load_backbone
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.families import materials_of

TABLES = Path(__file__).parent / "tables"
Row = dict[str, float]


class SplitImages:
    """The features of a split's images, and the log SNR of its noisings."""

    def __init__(self, benchmark: Benchmark, split: int, kept: Path) -> None:
        spec = compose(Document(benchmark.tree(0, split, kept / f"images-{benchmark.name}-{split}", kept / "emoji"), benchmark.name))
        materials = materials_of(spec, Folder(str(kept / "cache")), torch.device("cpu"))
        place = spec.file.target.test
        assert place is not None
        self.extractor: Extractor = load_extractor(benchmark.extractor, device="cpu")
        self.folds: list[Fold] = materials.folds
        test = materials.read(place).distinct()
        for fold in self.folds:
            test = test.without(fold.train).without(fold.holdout)
        self.test = self.extractor.features(test.images)
        self.digits = benchmark.extractor == "digits"
        seen = {_class(name) for name in materials.shots.names}
        self.test_of_seen = self.test[[_class(name) in seen for name in test.names]] if self.digits else self.test
        self.shots = [self.extractor.features(fold.train.images) for fold in self.folds]
        self.holdout = [self.extractor.features(fold.holdout.images) for fold in self.folds]
        self.all_shots = self.extractor.features(materials.shots.images)
        snr = load_backbone(str(spec.file.source.model), None).schedule.snr(torch.arange(1000))
        self.log_snr: NDArray[np.float64] = snr.double().log().numpy()

    def losses(self, found: Any, source: Any, name: str, row: int) -> Losses:
        """The losses of all folds of a row, one fold after the other; images are numbered on."""
        t, image = found[f"{name}_t"], found[f"{name}_image"].astype(np.int64)
        image = image + (np.cumsum([0, *(image.max(axis=1)[:-1] + 1)]))[:, None]
        of_source = source[name][0].astype(np.float64).ravel()
        return Losses(found[name][row].astype(np.float64).ravel(), of_source, self.log_snr[t].ravel(), image.ravel())

    def row(self, found: Any, source: Any, row: int) -> Row:
        """Signals and truths of one model (with cross-fitting: of its folds')."""
        signals = loss_signals(self.losses(found, source, "holdout", row), self.losses(found, source, "shots", row))
        of_folds, worth = [], []
        for index, samples in enumerate(found["samples"][row]):
            features: Tensor = self.extractor.features(torch.from_numpy(samples))
            seen, unseen = features[:SIGNAL_SAMPLES], features[SIGNAL_SAMPLES:]
            numbers = (FEW_SAMPLES, SIGNAL_SAMPLES)
            if len(self.folds) == 1:
                given = self.holdout[0], self.shots[0]
                values = [sample_signals(seen, *given, number) | few_image_signals(seen, *given, number) for number in numbers]
                of_folds.append(values[0] | values[1])
            found_of = truths(unseen, self.test, self.shots[index], self.test_of_seen)
            worth.append(found_of | (asdict(shares(torch.from_numpy(samples[SIGNAL_SAMPLES:]))) if self.digits else {}))
        if len(self.folds) > 1:  # pooled: a fold holds two images out, on which hardly any measure is defined
            pooled = torch.cat([self.extractor.features(torch.from_numpy(one[:SIGNAL_SAMPLES])) for one in found["samples"][row]])
            mixed = pooled[torch.randperm(len(pooled), generator=torch.Generator().manual_seed(0))]
            of_folds = [sample_signals(mixed, torch.cat(self.holdout), self.all_shots, SIGNAL_SAMPLES)]
        signals |= means(of_folds)
        return {f"signal: {name}": value for name, value in signals.items()} | {
            f"truth: {name}": value for name, value in means(worth).items()
        }


def _class(name: str) -> str:
    """Of an embedded digit, by its name `digits-target-0012-class3.png`."""
    return name.rsplit("class", 1)[-1]


def means(of_folds: list[Row]) -> Row:
    """Each value's mean."""
    return {name: float(np.mean([one[name] for one in of_folds])) for name in of_folds[0]}


def rows(benchmark: Benchmark, kept: Path) -> list[Row]:
    """All models of a benchmark that are there."""
    found: list[Row] = []
    for split in benchmark.splits:
        folder = kept / benchmark.name
        if not (folder / f"{SOURCE}-{split}.npz").exists():
            continue
        images = SplitImages(benchmark, split, kept)
        source = dict(np.load(folder / f"{SOURCE}-{split}.npz"))
        for name in [SOURCE, *map(str, range(benchmark.configurations))]:
            if not (path := folder / f"{name}-{split}.npz").exists():
                continue
            one = dict(np.load(path))
            number = -1 if name == SOURCE else int(name)
            for row, step in enumerate(one.get("step", ())):
                if np.isfinite(one["holdout"][row]).all():
                    found.append({"split": split, "configuration": number, "step": int(step), **images.row(one, source, row)})
        print(f"{benchmark.name}, split {split}: {len(found)} models", flush=True)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, required=True, help="record.py's folder")
    parser.add_argument("--benchmark", choices=BENCHMARKS, nargs="+", default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=TABLES)
    options = parser.parse_args()
    for name in options.benchmark:
        if not (found := rows(BENCHMARKS[name], options.kept)):
            continue
        options.out.mkdir(exist_ok=True, parents=True)
        columns = {
            column: pa.array([row[column] for row in found], pa.int16() if column in ("split", "configuration", "step") else pa.float32())
            for column in found[0]
        }
        pq.write_table(pa.table(columns), options.out / f"{name}.parquet", compression="zstd", compression_level=19)


if __name__ == "__main__":
    main()
