"""The bundled feature extractor of the digits benchmark: a small CNN over 8x8 grey images.

`bench/data/make_digit_network.py` trains it, on source digits only.
"""

from pathlib import Path

from torch import Tensor, nn

FEATURES = 64
WEIGHTS_FILE = Path(__file__).parent / "embedded" / "digit_network.safetensors"


class DigitNetwork(nn.Module):
    """49,122 parameters; images [N, 1, 8, 8] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 40, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(40, 64, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, FEATURES),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer [N, 64]."""
        features: Tensor = self.trunk(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [N, 10]."""
        logits: Tensor = self.head(self.features(images))
        return logits
