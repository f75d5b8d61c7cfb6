"""Convolutions on inputs of a pixel or four, as the last blocks of a ResNet see them in X-rays of 32 to 64 pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_IMAGES = 16  # from which on laying out the kernel anew pays


class Conv2d(nn.Conv2d):
    """torch's own convolution, computed on a CPU as one matrix product where each output pixel sees the whole input.

    There a padded kernel lies mostly on zeros, which the CPU's convolutions multiply all the same, backwards most
    slowly of all (tests/benchmarks/bench_small_images.py). Same parameters, same names, same values to rounding.
    Elsewhere, and for batches under FEWEST_IMAGES, torch's own is used.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """[N, C, H, W] to [N, O, H', W'] as nn.Conv2d does."""
        if input.device.type != "cpu" or input.ndim != 4 or len(input) < FEWEST_IMAGES:
            return super().forward(input)
        height, width = input.shape[-2:]
        rows, columns = self._windows(height, axis=0), self._windows(width, axis=1)
        if not rows or not columns:
            return super().forward(input)
        kernel = self.weight.permute(2, 3, 0, 1)  # [K, K, O, C]; channels last, as utils.hardware.placed lays it out
        seen = torch.stack(
            [
                kernel[top : top + height, left : left + width].permute(2, 0, 1, 3).flatten(1)  # [O, H * W * C]
                for top in rows
                for left in columns
            ]
        )
        pixels = input.permute(0, 2, 3, 1).flatten(1)  # [N, H * W * C]
        bias = None if self.bias is None else self.bias.repeat(len(seen))
        out = F.linear(pixels, seen.flatten(0, 1), bias)
        return out.view(len(input), len(rows), len(columns), self.out_channels).permute(0, 3, 1, 2)

    def _windows(self, size: int, axis: int) -> list[int]:
        """Where in the kernel the input begins, for each output pixel of an axis; empty if one does not see it all."""
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], int(self.padding[axis])
        starts = [padding - stride * i for i in range((size + 2 * padding - kernel) // stride + 1)]
        return starts if all(0 <= start <= kernel - size for start in starts) else []


def with_fast_convolutions(net: nn.Module) -> nn.Module:
    """The same network, its ungrouped, undilated convolutions with zeros around the input made `Conv2d` in place."""
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Conv2d  # parameters, hooks and names stay
    return net


def _is_plain(conv: nn.Conv2d) -> bool:
    numbers = not isinstance(conv.padding, str)
    return numbers and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
