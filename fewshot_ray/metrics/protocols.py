"""Named measurement protocols, which make values comparable with those of papers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.diversity import CLUSTER_CAP_IMAGES

Resize = Literal["clean", "pytorch", "tensorflow"]
"""How Inception's images come to 299x299: antialiased bicubic and rounded to 8 bits (Parmar et al. 2022); PyTorch's bilinear without
antialiasing; TensorFlow 1's bilinear, without antialiasing and with corners aligned at the upper left."""


@dataclass(frozen=True)
class MetricProtocol:
    """What a value depends on besides the images and the extractor. Real images always come in the generated ones' size (Lanczos)."""

    name: str
    resize: Resize = "clean"
    """Of images for Inception."""
    intra_cap: int = CLUSTER_CAP_IMAGES
    """Most images of a cluster that intra_lpips and intra_distance count."""
    shots_in_reference: bool = False
    """Whether the reference of `fd` has the images trained on too: then it rewards copying them."""
    samples: int | None = None
    """Generated images of the papers' values; None where there is no such number."""
    reference: str = "images never trained on"
    """The real images that the papers compare with."""
    inception_only: bool = False
    """Whether the papers' values are in Inception's features."""


CLEAN = MetricProtocol("clean")
"""This package's own: Frechet distance in the clean convention (Parmar et al. 2022), against images never trained on."""

FSIG = MetricProtocol(
    "fsig",
    resize="pytorch",
    shots_in_reference=True,
    samples=5_000,
    reference="the full target set, with the images trained on",
    inception_only=True,
)
"""Few-shot image generation's (Ojha et al. 2021 and those after it, Zhu et al. 2022 and ANT among them).

FID of 5,000 samples by pytorch-fid, which resizes bilinearly without antialiasing, against the full target set, the shots included, whose
images were resized to the model's size first; Intra-LPIPS of clusters of at most 50 images.
"""

FSIG_100 = MetricProtocol(
    "fsig-100",
    resize="pytorch",
    intra_cap=100,
    shots_in_reference=True,
    samples=5_000,
    reference="the full target set, with the images trained on",
    inception_only=True,
)
"""`fsig` with clusters of at most 100 images, as some of its papers have them."""

ADM = MetricProtocol(
    "adm", resize="tensorflow", samples=50_000, reference="10,000 or more images of the whole data set", inception_only=True
)
"""The evaluator of guided-diffusion (Dhariwal & Nichol 2021): its TensorFlow graph resizes without antialiasing, precision and recall have
k = 3, sFID is in the first seven channels of the 17x17 map; 50,000 samples."""

PROTOCOLS: Mapping[str, MetricProtocol] = {one.name: one for one in (CLEAN, FSIG, FSIG_100, ADM)}


def find_protocol(name: str, field: str = "evaluate.protocol") -> MetricProtocol:
    """The protocol of that name. Raises UserError, which names `field` and the nearest name."""
    if name not in PROTOCOLS:
        nearest = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)[0]
        raise UserError(f"{field}: there is no {name!r}; {', '.join(PROTOCOLS)} are right (did you mean {nearest}?)")
    return PROTOCOLS[name]


def unmet(protocol: MetricProtocol, *, samples: int, extractor: str | None) -> Iterator[str]:
    """A line for each demand of the protocol that an evaluation doesn't meet, so that its values aren't comparable with papers'.

    `extractor` is the id of the network of features; None where there is none.
    """
    if protocol.samples is not None and samples < protocol.samples:
        yield f"{protocol.name} is of {protocol.samples} generated images in its papers, and {samples} are measured; so many would be right"
    if protocol.inception_only and extractor is not None and not extractor.startswith("inception"):
        yield f"{protocol.name} is in Inception's features in its papers, not {extractor}'s; extractor inception would be right"
