"""Named protocols: how Inception's images are resized, and what is demanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor
from fewshot_ray.metrics.extractors.inception import RESIZES, pooling_layers, prepared, under
from fewshot_ray.metrics.protocols import ADM, CLEAN, FSIG, FSIG_100, PROTOCOLS, find_protocol, unmet
from fewshot_ray.spec.sections import EvaluateSpec
from tests.metrics.conftest import pictures


def test_adms_features_are_the_graphs_own(inception_file: Path) -> None:
    """Oracle: torch-fidelity's network, which resizes as the TensorFlow graph does, on images of their own size."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = pictures(2, 3, 48)
    oracle = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(inception_file))
    extractor = load_extractor("inception", device="cpu", weights=str(inception_file))
    (expected,) = oracle(images)
    features = under(extractor, ADM).features(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(features, extractor.features(images), rtol=1e-2)
    assert (extractor.resize, under(extractor, ADM).resize) == (RESIZES["clean"], "bilinear to 299x299, as TensorFlow 1's")
    fsig = under(extractor, FSIG).features(images)
    with torch.no_grad():
        torch.testing.assert_close(fsig, pooling_layers(oracle)(prepared(images, "pytorch")).flatten(1), rtol=1e-4, atol=1e-4)


def test_pytorch_fids_resize() -> None:
    """Oracle: NumPy's linear interpolation between the centres of pixels, along one axis after the other; 0 is -1 and 255 is 1."""
    images = pictures(1, 1, 20)
    at = (np.arange(299) + 0.5) * 20 / 299 - 0.5
    rows = np.stack([np.interp(at, np.arange(20), column) for column in images[0, 0].numpy().T.astype(float)], axis=1)
    both = np.stack([np.interp(at, np.arange(20), row) for row in rows])
    found = prepared(images, "pytorch")
    assert found.shape == (1, 3, 299, 299)
    np.testing.assert_allclose(found[0, 1], both / 255 * 2 - 1, atol=1e-5)
    assert prepared(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), "pytorch").flatten(1).mean(1).tolist() == [-1, 1]


def test_protocols_are_those_of_the_file() -> None:
    """Oracle: the file's field."""
    assert all(EvaluateSpec.model_validate({"protocol": name}).protocol == name for name in PROTOCOLS)
    assert find_protocol("fsig-100") is FSIG_100
    assert (FSIG.intra_cap, FSIG_100.intra_cap, CLEAN.intra_cap) == (50, 100, 50)
    with pytest.raises(UserError, match=r"did you mean adm\?"):
        find_protocol("amd")


def test_what_is_demanded_and_not_given_is_said() -> None:
    """Oracle: the papers' numbers of samples, and their network."""
    assert list(unmet(CLEAN, samples=4, extractor="digit-network-64")) == []
    assert list(unmet(FSIG, samples=5_000, extractor="inception-v3-2048")) == []
    assert list(unmet(FSIG, samples=5_000, extractor=None)) == []
    (line,) = unmet(ADM, samples=100, extractor="inception-v3-2048")
    assert line == "adm is of 50000 generated images in its papers, and 100 are measured; so many would be right"
    assert len(list(unmet(FSIG, samples=100, extractor="digit-network-64"))) == 2
