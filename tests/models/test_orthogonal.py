import pytest
import torch

from fewshot_ray.models.orthogonal import BlockDiagonal
from tests.models.test_parameters import built, stir, tuned


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """`(I - S)(I + S)^-1` by an explicit inverse in float64."""
    one = torch.eye(len(skew), dtype=torch.float64)
    return (one - skew) @ torch.linalg.inv(one + skew)


@pytest.mark.parametrize("kind", ["pixel", "dit"])
def test_oft_rotates_by_hand(kind: str) -> None:
    """Oracle: Cayley's transform of each block in float64: W R' for a linear layer, so that W W' stays; 2 blocks of 4."""
    network = tuned("oft", kind, block_size=4)
    stir(network)
    key = {"pixel": "mid_block.attentions.0.to_q", "dit": "transformer_blocks.0.attn1.to_q"}[kind]
    vectors = next(p for name, p in network.trained.items() if key in name).detach().double()
    assert vectors.shape == (2, 6)
    rotations = []
    for vector in vectors:
        upper = torch.zeros(4, 4, dtype=torch.float64)
        upper[tuple(torch.triu_indices(4, 4, 1))] = vector
        rotations.append(cayley(upper - upper.T))
    weight = built(kind).get_submodule(key).weight.detach().double()
    merged = network.merge().get_submodule(key).weight.detach().double()
    torch.testing.assert_close(merged, weight @ torch.block_diag(*rotations).T, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(merged @ merged.T, weight @ weight.T, atol=1e-6, rtol=1e-6)
    assert (merged - weight).abs().max() > 1e-2


@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("convolutions", [False, True])
def test_boft_is_a_scaled_rotation_of_as_many_factors(factors: int, convolutions: bool) -> None:
    """Oracle: theory: rows of W keep their angles and are scaled by s; so s^-1 W* = W R with R orthogonal, wider with more factors.

    One factor leaves the blocks apart, the second joins pairs of them: with 8 inputs and blocks of 4, R is then full.
    """
    network = tuned("boft", butterfly_factors=factors, convolutions=convolutions)
    stir(network)
    key = "mid_block.resnets.0.conv1" if convolutions else "mid_block.attentions.0.to_q"
    rotation, scale = (next(p for n, p in network.trained.items() if key in n and part in n).detach() for part in ("boft_R", "boft_s"))
    assert rotation.shape == (factors, 18 if convolutions else 2, 4, 4)
    weight = built("pixel").get_submodule(key).weight.detach().flatten(1)
    merged = network.merge().get_submodule(key).weight.detach().flatten(1) / scale.reshape(-1, 1)
    torch.testing.assert_close(merged @ merged.T, weight @ weight.T, atol=1e-5, rtol=1e-5)
    if not convolutions:
        full = torch.linalg.solve(weight, merged)
        torch.testing.assert_close(full @ full.T, torch.eye(8), atol=1e-4, rtol=1e-4)
        assert (full[:4, 4:].abs().max() > 1e-2) == (factors == 2)


def test_block_diagonal_matrices() -> None:
    """Oracle: torch.block_diag, and its gradient by autograd; peft calls the two functions in place of its CUDA extension."""
    blocks = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = torch.stack([torch.block_diag(*factor) for factor in blocks])
    upstream = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), blocks)
    assert torch.equal(BlockDiagonal.forward(blocks.detach())[0], expected)
    assert torch.equal(BlockDiagonal.backward(upstream, blocks.detach())[0], gradient)
