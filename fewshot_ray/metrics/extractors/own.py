"""A user's own extractor, named `package.module:callable`."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.protocol import in_batches
from fewshot_ray.models.memory import is_out_of_gpu_memory


@dataclass
class OwnExtractor:
    """A callable of images uint8 [n, C, H, W], on the device, that gives features [n, D]: floats, finite, D the same every time."""

    id: str
    function: Callable[[Tensor], Any] = field(repr=False)
    weights_hash: str
    device: torch.device
    resize: str = "its own"
    dimension: int | None = None
    batch_images: int = 32

    def features(self, images: Tensor) -> Tensor:
        """Features [N, D] of uint8 [N, C, H, W]. Raises UserError, with the callable's name, where it fails or gives anything else."""
        return in_batches(self._of, images, self.batch_images, self.id)

    def _of(self, batch: Tensor) -> Tensor:
        try:
            features = self.function(batch.to(self.device))
        except Exception as error:  # whatever the user's code raises
            if isinstance(error, RuntimeError) and is_out_of_gpu_memory(error):
                raise
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise self._refused(f"fails on images {tuple(batch.shape)}: {type(error).__name__}: {said}") from error
        if not isinstance(features, Tensor):
            raise self._refused(f"gives {type(features).__name__}")
        if features.ndim != 2 or len(features) != len(batch) or features.shape[1] == 0 or not features.is_floating_point():
            raise self._refused(f"gives {features.dtype} {tuple(features.shape)} for {len(batch)} images")
        if self.dimension not in (None, features.shape[1]):
            raise self._refused(f"gives {features.shape[1]} numbers an image after {self.dimension}")
        self.dimension = features.shape[1]
        return features

    def _refused(self, what: str) -> UserError:
        return UserError(f"evaluate.extractor: {self.id} {what}; a float tensor [N, D] of images uint8 [N, C, H, W] is right")


def is_own(name: str) -> bool:
    """Whether an extractor's name is of the form package.module:callable."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_own(name: str, device: torch.device, weights: str | None, weights_field: str) -> OwnExtractor:
    """The callable called `name`. Raises UserError where it can't be imported, isn't one, or `weights` are given."""
    if weights is not None:
        raise UserError(f"{weights_field}: {weights!r} is given, but {name} reads its own; leave the field out")
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(import_module(module_name), function_name)
    except Exception as error:  # whatever the module raises while it is imported
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"evaluate.extractor: {name} can't be imported ({type(error).__name__}: {said}); "
            "package.module:callable of a module that is installed or on PYTHONPATH is right"
        ) from error
    if not callable(function):
        raise UserError(f"evaluate.extractor: {name} is {type(function).__name__}, not callable; a function of images is right")
    return OwnExtractor(name, function, _hash_of(function, module_name), device)


def _hash_of(function: Callable[[Tensor], Any], module_name: str) -> str:
    """Of the file that the callable's module is read from: the weights are its own, and what they are isn't known here."""
    source = inspect.getsourcefile(import_module(module_name))
    content = Path(source).read_bytes() if source is not None else repr(function).encode()
    return hashlib.sha256(content).hexdigest()[:12]
