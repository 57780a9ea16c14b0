"""What a GAN's step costs: images a second and peak memory, with and without MixDL, and MixDL's step over its passes timed alone.

python bench/costs/step/gan_cost.py [--device cuda] [--repetitions 5] [--threads 1] [--keep-freed] [--quick]

A step of mixtures makes each player's images twice (the latents' own and the anchors'), and its discriminator looks at the reals by
patches and at both kinds of images whole. The bound is the sum of these passes, each timed alone, with the optimisers' steps; a pass is
a forward with the backward that the step takes through it. Images a second are over a whole round of the lazy phases (16 steps).
Each step and each pass is timed right after one of its own kind, as in a training: the first after others pays for memory that the C
library has given back meanwhile. On a CPU the networks are narrow; the published ones are for a GPU. With --keep-freed memory that is
freed stays with the process, which glibc doesn't do by itself: how much of the step is the allocator's. The target is judged without it,
as users train.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor

from bench.costs.step.time_and_memory import added_bytes
from bench.machine import write_result
from fewshot_ray.methods.fastgan import FastGanMethod
from fewshot_ray.methods.gan import GanMethod
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.compose import compose, expand
from fewshot_ray.trial.families import materials_of

MOST_OVER_BOUND = 1.10
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
ROUND = 16
PLAIN_STEPS, MIXED_STEPS = (2, 6, 10, 14), (1, 3, 5, 7)
"""Without lazy phases."""


@dataclass(frozen=True)
class Case:
    """A GAN and its batch."""

    name: str
    source: dict[str, Any]
    batch: int


GPU = (
    Case("StyleGAN2 64x64", {"stylegan2": {"resolution": 64}}, 32),
    Case("StyleGAN2 256x256", {"stylegan2": {"resolution": 256}}, 16),
    Case("FastGAN 256x256", {"fastgan": {"resolution": 256}}, 8),
)
CPU = (
    Case("StyleGAN2 64x64", {"stylegan2": {"resolution": 64, "channel_base": 4096, "channel_max": 64, "latent_dim": 128}}, 4),
    Case("StyleGAN2 256x256", {"stylegan2": {"resolution": 256, "channel_base": 4096, "channel_max": 64, "latent_dim": 128}}, 4),
    Case("FastGAN 256x256", {"fastgan": {"resolution": 256, "width": 16}}, 4),
)
QUICK = (
    Case("StyleGAN2 8x8", {"stylegan2": {"resolution": 8, "channel_base": 64, "channel_max": 8, "latent_dim": 8}}, 4),
    Case("FastGAN 64x64", {"fastgan": {"resolution": 64, "width": 8}}, 4),
)


def training_of(case: Case, method: dict[str, Any], device: torch.device) -> Training:
    """As a trial makes it, on random images; FastGAN redraws by pixels, since LPIPS's weights may not be here."""
    recipe = {"reconstruction": "pixels"} if "fastgan" in case.source else {}
    settings = {**next(iter(case.source.values())), "channels": 3}
    tree = {
        "name": "gan-cost",
        "source": {"gan": {next(iter(case.source)): settings}},
        "target": {"images": "embedded://digits/shots", "holdout": 2},
        "method": method,
        "train": {"steps": 1000, "batch_size": case.batch, "flip": False, "gan": recipe},
    }
    spec = compose(expand(Document(tree, "gan_cost")))
    training = materials_of(spec, Folder("unused"), device).training(images_of(case, settings["resolution"]), Group.alone())
    for module in training.method.modules().values():
        module.train()
    return training


def images_of(case: Case, resolution: int) -> Any:
    """A fold of random images."""
    from fewshot_ray.data.images import ImageSet
    from fewshot_ray.data.target import Fold

    images = torch.randint(256, (10, 3, resolution, resolution), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names = tuple(str(index) for index in range(10))
    some = ImageSet(images, names, names)
    return Fold("all", train=some, holdout=some.select([]))


def seconds_after_its_like(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of the second of two calls."""
    work()
    return seconds_of(work, device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def at_step(training: Training, step: int) -> Callable[[], None]:
    """That step, whatever came before."""

    def run() -> None:
        training.step = step
        training.take_step()

    return run


class Passes:
    """The passes of a step, each by itself."""

    def __init__(self, training: Training) -> None:
        method = training.method
        assert isinstance(method, GanMethod)
        self.method, self.gan, self.training = method, method.gan, training
        self.draw = method.context(training.batches.micro_batches(1, Group.alone(), training.micro_batch)[0], training.randomness)
        self.z = self.draw.normal("z", self.gan.latent_dim)
        with torch.no_grad():
            self.made = self.gan.make(self.gan.codes(self.z), self.draw.noise("noise"))
        self.discriminator, self.generator = method.discriminator_parameters(), list(self.gan.generator.parameters())

    def make(self) -> None:
        """Images without a graph."""
        with torch.no_grad():
            self.gan.make(self.gan.codes(self.z), self.draw.noise("noise"))

    def make_back(self) -> None:
        """Images, and back to the generator's weights from image and features alike."""
        made = self.gan.make(self.gan.codes(self.z), self.draw.noise("noise"))
        outputs = [made.image, *([made.small] if made.small is not None else [])]
        torch.autograd.backward([output.sum() for output in outputs], inputs=self.generator)

    def features_back(self) -> None:
        """The features of the layers that are compared, and back."""
        made = self.gan.make(self.gan.codes(self.z), self.draw.noise("noise"))
        torch.autograd.backward(made.features[self.gan.distance_layers[-1]].sum(), inputs=self.generator)

    def look_back(self) -> None:
        """A whole look at images, and back to the discriminator's weights."""
        self._judged(self.gan.view(self.made.image, self.made.small), self.discriminator, whole=True)

    def patches_back(self) -> None:
        """A look by patches, and back to the discriminator's weights."""
        self._judged(self.gan.view(self.made.image, self.made.small), self.discriminator, whole=False)

    def reals_back(self) -> None:
        """A look at reals as a plain step's: FastGAN's redraws them."""
        outputs: list[Tensor]
        if isinstance(self.method, FastGanMethod):
            network, judgement = self.method.gan.discriminator, self.method.gan.view(self.made.image).judgement
            outputs = [judgement.logits, network.decode_last(judgement.last), network.decode_small(judgement.small)]
            outputs.append(network.decode_part(judgement.part[:, :, :8, :8]))
        else:
            outputs = [self.gan.view(self.made.image).logits]
        torch.autograd.backward([output.sum() for output in outputs], inputs=self.discriminator)

    def through_back(self) -> None:
        """A look as a plain step's generator gets it: back to the images."""
        self._through(whole=True)

    def through_patches_back(self) -> None:
        """By patches, back to the images."""
        self._through(whole=False)

    def _through(self, *, whole: bool) -> None:
        image = self.made.image.clone().requires_grad_()
        small = None if self.made.small is None else self.made.small.clone().requires_grad_()
        self._judged(self.gan.view(image, small), [image, *([] if small is None else [small])], whole=whole)

    def _judged(self, view: Any, inputs: list[Any], *, whole: bool) -> None:
        mixup = self.method.mixup
        output = view.logits if whole or mixup is None else mixup.logits(view, self.draw)
        torch.autograd.backward(output.sum(), inputs=inputs)

    def adam(self, player: str) -> None:
        """One player's optimiser and, for the generator, the moving average."""
        self.method.optimizers()[player].step()
        if player == "G":
            self.training.ema.update()


def measure(case: Case, device: torch.device, repetitions: int) -> dict[str, Any]:
    """One case's figures."""
    plain, mixed = training_of(case, {"finetune": {}}, device), training_of(case, {"mixdl": {}}, device)
    for training in (plain, mixed):
        for step in range(3):
            at_step(training, step)()
    passes = Passes(mixed)
    counts = MIXED if passes.gan.patch_maps else MIXED_BY_ITSELF
    own: dict[str, list[float]] = {name: [] for name in ("plain", "mixed", "bound_plain", "bound_mixed")}
    for index in range(repetitions):
        own["plain"].append(seconds_after_its_like(at_step(plain, PLAIN_STEPS[index % 4]), device))
        own["mixed"].append(seconds_after_its_like(at_step(mixed, MIXED_STEPS[index % 4]), device))
        alone = {name: seconds_after_its_like(getattr(passes, name), device) for name in PASSES}
        adam = sum(seconds_after_its_like(partial(passes.adam, player), device) for player in "DG")
        own["bound_plain"].append(adam + sum(count * alone[name] for name, count in PLAIN.items()))
        own["bound_mixed"].append(adam + sum(count * alone[name] for name, count in counts.items()))
    figures = {name: median(values) for name, values in own.items()}
    rates, peaks = {}, {}
    for name, training in (("plain", plain), ("mixdl", mixed)):
        training.step = 0
        seconds = seconds_of(partial(training.advance, ROUND), device)
        rates[name] = round(ROUND * case.batch / seconds, 2)
        # A step of the kind, and a step with every lazy phase.
        steps = (at_step(training, step) for step in (0, 1))
        peaks[name] = round(max(added_bytes(step, device).most for step in steps) / 2**20)
    return {
        "case": case.name,
        "batch": case.batch,
        "network": case.source,
        "images_per_sec": rates,
        "step_peak_mib": peaks,
        "plain_ms": round(1e3 * figures["plain"], 2),
        "mixed_ms": round(1e3 * figures["mixed"], 2),
        "bound_ms": round(1e3 * figures["bound_mixed"], 2),
        "plain_over_its_bound": round(figures["plain"] / figures["bound_plain"], 3),
        "mixed_over_its_bound": round(median(m / b for m, b in zip(own["mixed"], own["bound_mixed"], strict=True)), 3),
    }


PASSES = ("make", "reals_back", "patches_back", "look_back", "make_back", "features_back", "through_back", "through_patches_back")
PLAIN = {"make": 1, "reals_back": 1, "look_back": 1, "make_back": 1, "through_back": 1}
"""How many of each a plain step takes."""
MIXED = {"make": 2, "patches_back": 1, "look_back": 2, "make_back": 1, "features_back": 1, "through_patches_back": 1}
"""And a step of mixtures."""
MIXED_BY_ITSELF = {"make": 2, "reals_back": 1, "look_back": 2, "make_back": 1, "features_back": 1, "through_back": 1}
"""Where the discriminator judges patches anyway, and goes on redrawing the reals."""


def keep_freed_memory() -> None:
    """glibc's `mallopt`: no block of its own for a large tensor, and nothing trimmed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def main() -> int:
    """Measure, print and write results/gan_cost*.json; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny networks: whether it runs; nothing is judged or written")
    parser.add_argument("--keep-freed", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    gc.freeze()
    if given.keep_freed:
        keep_freed_memory()
    rows = []
    for case in QUICK if given.quick else GPU if device.type == "cuda" else CPU:
        rows.append(measure(case, device, given.repetitions))
        print(rows[-1], flush=True)
    if given.quick:
        return 0
    missed = [row["case"] for row in rows if row["mixed_over_its_bound"] > MOST_OVER_BOUND]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    name = f"gan_cost{'_cuda' if device.type == 'cuda' else ''}{'_kept' if given.keep_freed else ''}"
    figures = {"gpu": gpu, "threads": given.threads, "repetitions": given.repetitions, "rows": rows, "missed": missed}
    print(write_result(name, " ".join(["python", "bench/costs/step/gan_cost.py", *sys.argv[1:]]), figures))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
