"""Which signal of ten images orders models as the test split does, and what choosing by it costs.

    python bench/judging/judging.py [--splits report]

Reads bench/judging/tables, prints a Markdown table a benchmark, and writes bench/results/judging.json. For each signal:

- Spearman's rank correlation over all models of a split (configurations x evaluations) with the truth's KID, coverage and share copied;
- regret: what the model that it chooses is worth less than the best there was, by each truth;
- on biased shots the coverage that it keeps: the chosen model's over the largest among models of no worse style.

Means over the splits, with 95 % intervals of a bootstrap over configurations (a resampled configuration brings its models of all splits).
What is said of the chosen model is the mean over these resamples, which are searches of as many configurations.
Definitions were chosen on the development splits; `report` are the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import rankdata

from bench.judging.benchmarks import BENCHMARKS, Benchmark
from bench.judging.record import SIGNAL_SAMPLES
from bench.judging.signals import FEW_SAMPLES
from bench.machine import write_result

TABLES = Path(__file__).parent / "tables"
Array = NDArray[np.float64]
RESAMPLES = 1000
MOST_COPIES = 0.05
"""A constraint: models with a larger share memorised stand behind all others."""
BEHIND = 1e6
TRUTHS: Mapping[str, int] = {"kid": 1, "coverage": -1, "copied": 1}
"""With the sign that makes less better."""


@dataclass(frozen=True)
class Models:
    """The models of one split, without the source."""

    configuration: NDArray[np.int64]
    values: Mapping[str, Array]

    def signal(self, name: str) -> Array:
        """A signal by name, of which less is better."""
        return self.values[f"signal: {name}"]

    def truth(self, name: str) -> Array:
        """A truth by name."""
        return self.values[f"truth: {name}"]


def read(benchmark: Benchmark, splits: Sequence[int], folder: Path) -> list[Models]:
    """The models of the splits that are there."""
    table = pq.read_table(folder / f"{benchmark.name}.parquet")
    columns = {name: np.asarray(table[name], dtype=float) for name in table.column_names}
    found = []
    for split in splits:
        of_split = columns["split"] == split
        source = of_split & (columns["configuration"] < 0)
        trained = of_split & ~source
        if not trained.any():
            continue
        values = {name: column[trained] for name, column in columns.items() if ": " in name}
        values |= _combined(values, {name: float(column[source][0]) for name, column in columns.items() if ": " in name})
        found.append(Models(columns["configuration"][trained].astype(np.int64), values))
    return found


def _combined(values: Mapping[str, Array], source: Mapping[str, float]) -> dict[str, Array]:
    """Products of a loss and the distances of samples, each relative to the source model's; with and without a bound on copies."""
    found: dict[str, Array] = {}
    for loss, images in product(("relative_loss", "relative_content"), ("", ", 3 images")):
        for samples in (SIGNAL_SAMPLES, FEW_SAMPLES):
            fd, kid = f"signal: fd, {samples}{images}", f"signal: kid, {samples}{images}"
            if fd not in values:
                continue
            distance = (values[fd] / source[fd] + values[kid] / source[kid]) / 2
            product_of = values[f"signal: {loss}{images}"] * distance
            name = f"signal: {loss} x distance, {samples}{images}"
            copies = values[f"signal: memorisation, {samples}{images}"] > MOST_COPIES
            found |= {name: product_of, f"{name}, copies <= {MOST_COPIES}": product_of + BEHIND * copies}
    copies = values[f"signal: memorisation, {SIGNAL_SAMPLES}"] > MOST_COPIES
    for name in ("relative_loss", "relative_content", f"fd, {SIGNAL_SAMPLES}", f"kid, {SIGNAL_SAMPLES}"):
        found[f"signal: {name}, copies <= {MOST_COPIES}"] = values[f"signal: {name}"] + BEHIND * copies
    return found


Statistic = Callable[[Models, NDArray[np.int64], str], float]
"""Of a split, the rows of its models (with those of a configuration drawn twice twice), and a signal."""


def correlation(truth: str) -> Statistic:
    """Spearman's, with a sign that makes 1 perfect."""

    def of(models: Models, rows: NDArray[np.int64], signal: str) -> float:
        a, b = rankdata(models.signal(signal)[rows]), rankdata(models.truth(truth)[rows])
        if a.std() == 0 or b.std() == 0:
            return 0.0
        return TRUTHS[truth] * float(np.corrcoef(a, b)[0, 1])

    return of


def regret(truth: str) -> Statistic:
    """The chosen model's truth less the best one's, at least 0."""

    def of(models: Models, rows: NDArray[np.int64], signal: str) -> float:
        worth = TRUTHS[truth] * models.truth(truth)[rows]
        return float(worth[models.signal(signal)[rows].argmin()] - worth.min())

    return of


def kept_coverage(models: Models, rows: NDArray[np.int64], signal: str) -> float:
    """The chosen model's coverage over the largest of models of no worse style."""
    chosen = models.signal(signal)[rows].argmin()
    coverage, style = models.truth("coverage")[rows], models.truth("style")[rows]
    return float(coverage[chosen] / max(coverage[style >= style[chosen]].max(), 1e-9))


def chosen(truth: str) -> Statistic:
    """A truth of the chosen model."""

    def of(models: Models, rows: NDArray[np.int64], signal: str) -> float:
        return float(models.truth(truth)[rows][models.signal(signal)[rows].argmin()])

    return of


STATISTICS: Mapping[str, Statistic] = {
    **{f"rank correlation, {truth}": correlation(truth) for truth in TRUTHS},
    **{f"regret, {truth}": regret(truth) for truth in TRUTHS},
    "coverage kept at no worse style": kept_coverage,
    "style of the chosen": chosen("style"),
    "unseen share of the chosen": chosen("unseen"),
}

OF_STYLE = ("coverage kept at no worse style", "style of the chosen", "unseen share of the chosen")


def judged(splits: Sequence[Models], signal: str, resamples: int) -> dict[str, dict[str, float]]:
    """Every statistic's mean over the splits, with its interval; of what one model decides, the chosen one, the mean over the resamples."""
    configurations = sorted({int(one) for models in splits for one in models.configuration})
    rows_of = [{one: np.flatnonzero(models.configuration == one) for one in configurations} for models in splits]
    generator = np.random.default_rng(0)
    draws = [configurations, *(generator.choice(configurations, len(configurations)).tolist() for _ in range(resamples))]
    styled = "truth: style" in splits[0].values
    statistics = {name: statistic for name, statistic in STATISTICS.items() if styled or name not in OF_STYLE}
    found: dict[str, list[float]] = {name: [] for name in statistics}
    for draw in draws:
        rows = [np.concatenate([of[one] for one in draw]) for of in rows_of]
        for name, statistic in statistics.items():
            found[name].append(float(np.mean([statistic(models, some, signal) for models, some in zip(splits, rows, strict=True)])))
    return {
        name: {
            "value": values[0] if "correlation" in name else float(np.mean(values[1:])),
            "low": float(np.quantile(values[1:], 0.025)),
            "high": float(np.quantile(values[1:], 0.975)),
        }
        for name, values in found.items()
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """In Markdown, a signal a row."""
    names = list(next(iter(results.values())))
    lines = ["| signal | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for signal, found in results.items():
        cells = [f"{one['value']:.2f} ({one['low']:.2f} .. {one['high']:.2f})" for one in found.values()]
        lines.append(f"| {signal} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", choices=("report", "development"), default="report")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--tables", type=Path, default=TABLES)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for benchmark in BENCHMARKS.values():
        if not (options.tables / f"{benchmark.name}.parquet").exists():
            continue
        development = options.splits == "development"
        splits = read(benchmark, [one for one in benchmark.splits if (one in benchmark.development) == development], options.tables)
        if not splits:
            continue
        signals = [name.removeprefix("signal: ") for name in splits[0].values if name.startswith("signal: ")]
        found = {signal: judged(splits, signal, options.resamples) for signal in signals}
        models = sum(len(one.configuration) for one in splits)
        print(f"\n### {benchmark.name}: {len(splits)} splits, {models} models\n\n{table(found)}", flush=True)
        results[benchmark.name] = {"splits": len(splits), "models": models, "signals": found}
    if options.splits == "report" and options.tables == TABLES:
        write_result("judging", "python bench/judging/judging.py", results)


if __name__ == "__main__":
    main()
