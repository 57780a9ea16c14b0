"""What one pass of an extractor gives, and extractors that keep it."""

from collections.abc import Callable

from torch import Tensor

from fewshot_ray.metrics.extractors.inception import InceptionExtractor
from fewshot_ray.metrics.extractors.protocol import Extractor


class Kept:
    """An extractor that keeps what it gave of each tensor of images; for a few sets of images, which are not changed meanwhile."""

    def __init__(self, extractor: Extractor, said: Callable[[str], None]) -> None:
        """`said` is told of every pass."""
        self._extractor = extractor
        self._said = said
        self._outputs: list[tuple[Tensor, dict[str, Tensor]]] = []

    @property
    def id(self) -> str:
        """The extractor's."""
        return self._extractor.id

    @property
    def weights_hash(self) -> str:
        """The extractor's."""
        return self._extractor.weights_hash

    @property
    def resize(self) -> str:
        """The extractor's."""
        return self._extractor.resize

    @property
    def dimension(self) -> int | None:
        """The extractor's."""
        return self._extractor.dimension

    def features(self, images: Tensor) -> Tensor:
        """The extractor's, of uint8 [N, C, H, W]."""
        return self.outputs(images)["features"]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The extractor's by name, computed once for each tensor."""
        for known, given in self._outputs:
            if known is images:
                return given
        self._said(f"features of {len(images)} images by {self.id}")
        self._outputs.append((images, outputs(self._extractor, images)))
        return self._outputs[-1][1]


def outputs(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    """All that one pass gives of images uint8 [N, C, H, W], by name: `features`, of Inception `spatial` and `logits` too."""
    if isinstance(extractor, Kept):
        return extractor.outputs(images)
    if isinstance(extractor, InceptionExtractor):
        return extractor.outputs(images)._asdict()
    return {"features": extractor.features(images)}
