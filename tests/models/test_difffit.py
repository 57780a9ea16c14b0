import pytest
import torch
from diffusers import ModelMixin
from torch import nn

from tests.models.test_parameters import built, stir, tuned
from tests.tiny_diffusion import normal


def own_parameters(network: ModelMixin, *kinds: type[nn.Module]) -> set[str]:
    """Names of the parameters that modules of these kinds hold themselves."""
    modules = [(prefix, module) for prefix, module in network.named_modules() if isinstance(module, kinds)]
    return {name for prefix, module in modules for name, _ in module.named_parameters(prefix, recurse=False)}


@pytest.mark.parametrize(("kind", "gammas"), [("pixel", 8 + 4), ("classes", 8 + 4), ("dit", 2 + 2), ("dit-new-table", 2 + 2)])
def test_what_difffit_trains(kind: str, gammas: int) -> None:
    """Oracle: biases, normalisations and embeddings by their modules' types; branches counted by hand.

    The UNet has 8 residual blocks (2 down, 2 in the middle, 4 up) and 4 attentions, a DiT block one attention and one feed-forward.
    """
    trained = set(tuned("difffit", kind).trained)
    source = built(kind)
    biases = {name for name, _ in source.named_parameters() if name.endswith(".bias")}
    expected = biases | own_parameters(source, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
    assert expected == {name for name in trained if not name.endswith(".gamma")}
    assert len(trained - expected) == gammas
    assert set(tuned("difffit", kind, scale_gammas=False).trained) == expected
    assert not any("norm1.linear.weight" in name for name in trained)


def test_gammas_fold_by_hand() -> None:
    """Oracle: theory: gamma (W x + b) has weight gamma W and bias gamma b, row by row; each layer's own output, to 1e-6."""
    for kind, names in (
        ("pixel", ("mid_block.resnets.0.conv2", "mid_block.attentions.0.to_out.0")),
        ("dit", ("transformer_blocks.1.attn1.to_out.0", "transformer_blocks.1.ff.net.2")),
    ):
        network = tuned("difffit", kind)
        for name in names:
            assert torch.equal(network.trained[f"{name}.gamma"], torch.ones(8))
        stir(network)
        layers = [network.network.get_submodule(name) for name in names]
        inputs = [normal(2, channels=8) if isinstance(m, nn.Conv2d) else normal(2, channels=1, size=m.in_features)[:, 0] for m in layers]
        before = [layer(x).detach() for layer, x in zip(layers, inputs, strict=True)]
        by_hand = [(torch.einsum("o,o...->o...", m.gamma, m.weight).detach(), (m.gamma * m.bias).detach()) for m in layers]
        network.merge()
        network.merge()  # folds nothing twice
        for layer, x, expected, (weight, bias) in zip(layers, inputs, before, by_hand, strict=True):
            assert not hasattr(layer, "gamma")
            assert torch.equal(layer.weight, weight)
            assert torch.equal(layer.bias, bias)
            torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-6)
