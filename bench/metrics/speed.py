"""What metrics cost beside their networks alone, in CPU time of one thread, on images at 256x256.

python bench/metrics/speed.py

Fidelity: FD, KID, precision and recall of 5,000 images against 5,000. The extractor's time an image is measured on few, that of the
metrics on random features at full number. Diversity: Intra-LPIPS of 50 images around five, at most five a cluster, with memory for the
embeddings of six: a twentieth of 1,000 images, 50 a cluster and 128 embeddings, but for twice as many training images for their number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torchvision.models import vgg16

from bench.machine import write_result
from bench.metrics.parity import pictures, randomised
from fewshot_ray.metrics import perceptual as module
from fewshot_ray.metrics.diversity import intra_cluster_diversity
from fewshot_ray.metrics.extractors.inception import SIZE, InceptionExtractor
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance
from fewshot_ray.metrics.manifold import manifold
from fewshot_ray.metrics.perceptual import PerceptualDistance, load_perceptual
from fewshot_ray.metrics.values import PerceptualSets

IMAGES, TRIED = 5000, 32
SHRUNK = 20
SAMPLES, SHOTS, CAP, KEPT = 1000 // SHRUNK, 10, 50, 128


def cpu_sec(work: Callable[[], object]) -> float:
    """CPU time of this process for it."""
    started = time.process_time()
    work()
    return time.process_time() - started


def inception() -> InceptionExtractor:
    """Inception of random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    kind = fidelity.FeatureExtractorInceptionV3
    with patch.object(fidelity, "load_state_dict_from_url", return_value={}), patch.object(kind, "load_state_dict"):
        network = kind("inception", ["2048"])
    network.load_state_dict(randomised(network.state_dict()))
    return InceptionExtractor(network, "random", torch.device("cpu"))


@torch.no_grad()
def fidelity() -> dict[str, float]:
    """Seconds an image of the network alone and of the extractor; seconds of the metrics; the ratio at 5,000 images."""
    extractor, images = inception(), pictures(TRIED, 256, 1)
    resized = pictures(TRIED, SIZE, 1)
    extractor.features(images[:2])
    bare = cpu_sec(lambda: extractor.network(resized)) / TRIED
    whole = cpu_sec(lambda: extractor.features(images)) / TRIED
    x, y = torch.rand(IMAGES, 2048), torch.rand(IMAGES, 2048)
    metrics = {
        "fd_sec": cpu_sec(lambda: frechet_distance(x, y)),
        "kid_sec": cpu_sec(lambda: kernel_distance(x, y)),
        "precision_recall_sec": cpu_sec(lambda: manifold(x, y)),
    }
    ratio = (IMAGES * whole + sum(metrics.values())) / (IMAGES * bare)
    return {"network_sec_an_image": bare, "extractor_sec_an_image": whole, **metrics, "over_network": ratio}


@torch.no_grad()
def diversity(folder: Path) -> dict[str, float]:
    """Seconds an image of VGG alone; of the whole; the ratio."""
    torch.save(randomised(vgg16(weights=None).state_dict()), folder / "vgg.pth")
    perceptual = load_perceptual(device="cpu", weights=str(folder / "vgg.pth"))
    samples, training = pictures(SAMPLES, 256, 2), pictures(max(1, SHOTS // 2), 256, 3)
    prepared = torch.randn(8, 3, 256, 256)
    perceptual.network.net(prepared[:1])
    bare = cpu_sec(lambda: perceptual.network.net(prepared)) / len(prepared)
    embedding_bytes = perceptual.embedding(samples[:1]).numel() * 4
    with patch.object(module, "KEPT_BYTES", embedding_bytes * KEPT // SHRUNK):
        whole = cpu_sec(lambda: intra(perceptual, samples, training))
    return {"network_sec_an_image": bare, "whole_sec": whole, "over_network": whole / (SAMPLES * bare)}


def intra(perceptual: PerceptualDistance, samples: Tensor, training: Tensor) -> float:
    """As the suite computes it; each training image's cluster counts as many as its share of half of the samples."""
    sets = PerceptualSets(perceptual, samples, training)
    return intra_cluster_diversity(sets.to_training, sets.embedded.within, cap=SAMPLES // 2 // len(training)).value


def main() -> None:
    """Measure, print and write the result."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {"fidelity": fidelity(), "intra_lpips": diversity(Path(folder))}
    print(found)
    write_result("metrics_speed", ".venv/bin/python bench/metrics/speed.py", found)


if __name__ == "__main__":
    main()
