"""Feature extractors of the metrics. A network is a file here and a line of EXTRACTORS."""

import difflib
from collections.abc import Callable, Mapping

import torch

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.clip import load_clip
from fewshot_ray.metrics.extractors.digits import load_digits
from fewshot_ray.metrics.extractors.dinov2 import load_dinov2
from fewshot_ray.metrics.extractors.efficientnet import load_efficientnet
from fewshot_ray.metrics.extractors.inception import load_inception
from fewshot_ray.metrics.extractors.outputs import Kept, outputs
from fewshot_ray.metrics.extractors.own import is_own, load_own
from fewshot_ray.metrics.extractors.protocol import Extractor

__all__ = ["EXTRACTORS", "Extractor", "Kept", "check_extractor", "load_extractor", "outputs"]

Loader = Callable[[torch.device, str | None, str], Extractor]
"""Of the device, a place to read the weights from (None: the network's own), and the name of the field with it, for messages."""

EXTRACTORS: Mapping[str, Loader] = {
    "digits": load_digits,
    "inception": load_inception,
    "dinov2": load_dinov2,
    "clip": load_clip,
    "efficientnet": load_efficientnet,
}


def load_extractor(
    name: str, *, device: str | torch.device, weights: str | None = None, field: str = "evaluate.extractor_weights"
) -> Extractor:
    """The extractor called `name`, one of EXTRACTORS or the user's own `package.module:callable`, on `device`.

    `weights` is read instead of the network's own: a file, or for `dinov2` and `clip` a folder or hub id; `field` is what it is called in
    messages. Raises UserError on an unknown name and where the network can't be loaded.
    """
    check_extractor(name)
    if is_own(name):
        return load_own(name, torch.device(device), weights, field)
    return EXTRACTORS[name](torch.device(device), weights, field)


def check_extractor(name: str) -> None:
    """Raises UserError where `name` is none of EXTRACTORS and no `package.module:callable`; nothing is imported."""
    if name not in EXTRACTORS and not is_own(name):
        nearest = difflib.get_close_matches(name, EXTRACTORS, n=1, cutoff=0.0)[0]
        known = ", ".join(EXTRACTORS)
        raise UserError(
            f"evaluate.extractor: there is no {name!r}; {known} or a package.module:callable are right (did you mean {nearest}?)"
        )
