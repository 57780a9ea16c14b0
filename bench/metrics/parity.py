"""Are the metrics those of the libraries that define them? The same seeded random weights, images and features through both.

python bench/metrics/parity.py [--images 20]

torch-fidelity and torchmetrics are installed anyway. lpips, prdc, vendi-score and clean-fid are installed from PyPI into a folder that is
deleted at the end. Minutes on one core, most of it Inception.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn

from bench.machine import write_result
from fewshot_ray.metrics.diversity import vendi_score
from fewshot_ray.metrics.extractors import load_extractor, outputs
from fewshot_ray.metrics.extractors.protocol import resize_rgb
from fewshot_ray.metrics.fidelity import frechet_distance, inception_score, kernel_distance
from fewshot_ray.metrics.manifold import manifold
from fewshot_ray.metrics.memorisation import memorisation_informed_distance
from fewshot_ray.metrics.perceptual import Network, load_perceptual

PACKAGES = ("lpips==0.1.4", "prdc==0.2", "vendi-score==0.0.3", "clean-fid==0.1.35")
FRECHET_BOUND, BOUND = 1e-3, 1e-5
SPLITS = 10


@dataclass(frozen=True)
class Row:
    """A value of both, and the largest relative difference that counts as the same."""

    metric: str
    library: str
    over: str
    ours: float
    theirs: float
    bound: float

    def record(self) -> dict[str, Any]:
        """With the difference, relative to theirs."""
        apart = abs(self.ours - self.theirs) / max(abs(self.theirs), 1e-12)
        return asdict(self) | {"relative_difference": apart, "within": apart <= self.bound}


def pictures(count: int, side: int, seed: int) -> Tensor:
    """Smooth random colour pictures uint8 [count, 3, side, side]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth: Tensor = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    images: Tensor = (smooth * 255).round().to(torch.uint8)
    return images


def features(count: int, dimension: int, seed: int) -> Tensor:
    """Correlated features float32 [count, dimension], shifted by the seed."""
    mixing = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(0)) / dimension**0.5
    mixed: Tensor = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) @ mixing + 0.1 * seed
    return mixed


def randomised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kaiming-normal weights in place of a network's convolutions, by a fixed seed; all else as it is."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else tensor
        for name, tensor in state.items()
    }


def inception(folder: Path, images: int) -> Iterator[Row]:
    """From pictures to values: torch-fidelity's network and metrics, and ours, over one file of weights."""
    module = import_module("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with patch.object(module, "load_state_dict_from_url", return_value={}), patch.object(kind, "load_state_dict"):
        blank = kind("inception", ["2048"])
    torch.save(randomised(blank.state_dict()), folder / "inception.pth")
    with torch.no_grad():
        theirs = [torch.cat(list(_theirs(kind, folder, drawn))) for drawn in _drawn(images)]
    extractor = load_extractor("inception", device="cpu", weights=str(folder / "inception.pth"))
    ours = [outputs(extractor, drawn) for drawn in _drawn(images)]
    over = f"{images} and {images} pictures at 299x299, Inception of random weights"
    pools = [both[:, :2048] for both in theirs]
    yield from _distances(ours[0]["features"], ours[1]["features"], pools[0], pools[1], over)
    metric = import_module("torch_fidelity.metric_isc")
    score = metric.isc_features_to_metric(theirs[0][:, 2048:], splits=SPLITS, shuffle=False)[metric.KEY_METRIC_ISC_MEAN]
    yield Row("inception_score", "torch-fidelity", over, inception_score(ours[0]["logits"]).value, score, BOUND)


def _drawn(images: int) -> list[Tensor]:
    return [pictures(images, 299, seed) for seed in (1, 2)]


def _theirs(kind: Any, folder: Path, images: Tensor) -> Iterator[Tensor]:
    network = kind("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(folder / "inception.pth"))
    for part in images.split(5):
        yield torch.cat(network(part), 1)


def _distances(x: Tensor, y: Tensor, their_x: Tensor, their_y: Tensor, over: str) -> Iterator[Row]:
    """Frechet and kernel distance, precision and recall of two equally large sets, against torch-fidelity's of theirs."""
    fid, kid, prc = (import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "prc"))
    statistics = [fid.fid_features_to_statistics(rows.double()) for rows in (their_x, their_y)]
    yield Row(
        "fd",
        "torch-fidelity",
        over,
        frechet_distance(x, y),
        fid.fid_statistics_to_metric(*statistics, False)[fid.KEY_METRIC_FID],
        FRECHET_BOUND,
    )
    whole = kid.kid_features_to_metric(their_x.double(), their_y.double(), kid_subsets=1, kid_subset_size=len(x), verbose=False)
    yield Row("kid", "torch-fidelity", over, kernel_distance(x, y).value, whole[kid.KEY_METRIC_KID_MEAN], BOUND)
    shares = prc.prc_features_to_metric(their_x, their_y, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    found = manifold(x, y, k=3)
    for name in ("precision", "recall"):
        yield Row(name, "torch-fidelity", over, getattr(found, name), shares[name], BOUND)


def of_features() -> Iterator[Row]:
    """Each function on the same features."""
    x, y = features(400, 64, 1), features(400, 64, 2)
    over = "400 and 400 features of 64"
    yield from _distances(x, y, x, y, over)
    moments = [value for rows in (x, y) for value in (rows.double().mean(0), torch.cov(rows.double().T))]
    with _scipys_older_sqrtm():
        clean = import_module("cleanfid.fid").frechet_distance(*(moment.numpy() for moment in moments))
    yield Row("fd", "clean-fid", over, frechet_distance(x, y), float(clean), FRECHET_BOUND)
    theirs = import_module("prdc").compute_prdc(real_features=y.double().numpy(), fake_features=x.double().numpy(), nearest_k=5)
    found = manifold(x, y, k=5)
    for name in ("precision", "recall", "density", "coverage"):
        yield Row(name, "prdc", f"{over}, k = 5", getattr(found, name), float(theirs[name]), BOUND)
    yield Row("vendi", "vendi-score", over, vendi_score(x), float(import_module("vendi_score.vendi").score_dual(x.double().numpy())), BOUND)
    near = features(400, 64, 30)  # so far from the origin that the cosine distances are below MiFID's threshold
    mifid = import_module("torchmetrics.image.mifid")
    penalty = float(mifid._compute_cosine_distance(near.double(), near[:50].double() + 0.1 * x[:50]))
    training = near[:50].double() + 0.1 * x[:50]
    ours = memorisation_informed_distance(near, training, y)
    yield Row("mifid", "torchmetrics (sets exchanged)", over, ours, frechet_distance(near, y) / penalty, BOUND)


class _scipys_older_sqrtm:  # noqa: N801 - used as a context
    """clean-fid 0.1.35 unpacks what SciPy's sqrtm no longer returns together with `disp`."""

    def __enter__(self) -> None:
        linalg = import_module("scipy.linalg")
        root = linalg.sqrtm
        self.patched = patch.object(linalg, "sqrtm", lambda A, disp=True: root(A) if disp else (root(A), 0.0))
        self.patched.start()

    def __exit__(self, *_: object) -> None:
        self.patched.stop()


def lpips(folder: Path) -> Iterator[Row]:
    """The package's networks and heads against ours, with torchvision's networks of random weights for trunks."""
    models, theirs_of = import_module("torchvision.models"), import_module("lpips").LPIPS
    whole: dict[Network, str] = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
    a, b = pictures(4, 64, 3), pictures(4, 64, 4)
    for network, model in whole.items():
        state = randomised(getattr(models, model)(weights=None).state_dict())
        place = folder / f"{model}.pth"
        torch.save(state, place)
        theirs = theirs_of(net=network, pnet_rand=True, verbose=False)
        names = theirs.net.state_dict()
        theirs.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in names})
        with torch.no_grad():
            expected = theirs(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
        ours = load_perceptual(device="cpu", weights=str(place), network=network, size=64)
        for way, found in (("pairs", ours.distance(a, b)), ("matrix", ours.matrix(a, b).diagonal())):
            worst = int(((found - expected).abs() / expected).argmax())
            yield Row(f"lpips-{network}, {way}", "lpips", "4 pairs at 64x64", float(found[worst]), float(expected[worst]), BOUND)


def resize() -> dict[str, float]:
    """Pixels of clean-fid's resize and of ours, before ours are rounded to 8 bits, which clean-fid's aren't."""
    small = pictures(2, 100, 5)
    clean = import_module("cleanfid.resize").build_resizer("clean")
    theirs = np.stack([clean(image.permute(1, 2, 0).numpy()) for image in small])
    ours = resize_rgb(small, 299).permute(0, 2, 3, 1).numpy()
    return {"largest_difference_of_255": float(np.abs(ours - theirs).max())}


def main() -> None:
    """Compare, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20, help="pictures of each set that go through Inception; 10 or more")
    images = parser.parse_args().images
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages"), *PACKAGES]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        sys.path.append(str(folder / "packages"))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            rows = [row.record() for row in (*of_features(), *lpips(folder), *inception(folder, images))]
            pixels = resize()
    for row in rows:
        print(
            f"{row['metric']:24} {row['library']:30} {row['ours']:.8g} {row['theirs']:.8g} {row['relative_difference']:.1e} {row['within']}"
        )
    libraries = {name: version(name) for name in ("torch-fidelity", "torchmetrics")} | dict(one.split("==") for one in PACKAGES)
    command = f".venv/bin/python bench/metrics/parity.py --images {images}"
    write_result("parity", command, {"libraries": libraries, "rows": rows, "clean_fid_resize": pixels})
    if not all(row["within"] for row in rows):
        sys.exit("not within the bound")


if __name__ == "__main__":
    main()
