"""What OFT and BOFT need in addition to peft: block sizes that fit, and BOFT's block-diagonal matrices without a compiler."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fewshot_ray.errors import UserError


def check_blocks(setting: str, network: nn.Module, targets: list[str], block_size: int, factors: int = 1) -> None:
    """Raise UserError where a target's input width is no multiple of `block_size 2^(factors - 1)`.

    Each butterfly factor after the first joins blocks in pairs. Without this check peft would use another block size for OFT, and
    its error for BOFT would name no layer.
    """
    widths = {target: _width(network.get_submodule(target)) for target in targets}
    joined = 2 ** (factors - 1)
    misfit = next((target for target, width in widths.items() if width % (block_size * joined)), None)
    if misfit is None:
        return
    common = math.gcd(*widths.values())
    sizes = [str(size) for size in range(2, min(common, 32) + 1) if common % (size * joined) == 0]
    right = " or ".join(filter(None, [", ".join(sizes[:-1]), *sizes[-1:]]))
    given = f"block_size {block_size}" + (f" times {joined} (butterfly_factors {factors})" if joined > 1 else "")
    raise UserError(
        f"train.params.{setting}: {given} doesn't divide {misfit}'s width of {widths[misfit]}; "
        f"{right or ('fewer butterfly_factors' if joined > 1 else 'lora')} would be right"
    )


def _width(layer: nn.Module) -> int:
    """The width of a layer's input that is rotated: for a convolution its whole window."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    assert isinstance(layer, nn.Linear)
    return layer.in_features


class BlockDiagonal:
    """The two functions of peft's CUDA extension for BOFT, in PyTorch.

    peft compiles the extension when a layer is made, and where it can't it uses 1 butterfly factor whatever was asked for:
    the same file would train another model on a machine without a compiler.
    """

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        """`[N, D, H, H]` to N block-diagonal matrices, `[N, D H, D H]`."""
        n, d, h, _ = blocks.shape
        matrices = blocks.new_zeros(n, d, h, d, h)
        matrices.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
        return [matrices.reshape(n, d * h, d * h)]

    @staticmethod
    def backward(gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        """The diagonal's part of the matrices' gradient, in the shape of `blocks`."""
        n, d, h, _ = blocks.shape
        return [gradient.reshape(n, d, h, d, h).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()]


def use_plain_block_diagonal() -> None:
    """Replace peft's extension by `BlockDiagonal`, in this process from now on."""
    from peft.tuners.boft import layer as peft_boft  # here, as in `parameters.py`

    peft_boft._FBD_CUDA = BlockDiagonal
