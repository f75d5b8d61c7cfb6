"""Fast convolutions on inputs of 1 to 4 pixels, as in the last blocks of a ResNet on X-rays of 32 to 64 pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_IMAGES = 16  # in a batch; below, rearranging the kernel costs more than it saves


class Conv2d(nn.Conv2d):
    """torch's own convolution, computed on a CPU as one matrix product where each output pixel sees the whole input.

    There most of a padded kernel covers zeros, which the CPU's convolutions multiply all the same; the backward pass is
    slowest (tests/benchmarks/bench_small_images.py). Same parameters, same names, same values to rounding. On other
    devices, and for batches of fewer than MIN_IMAGES, it is torch's convolution.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Return [N, O, H', W'] for [N, C, H, W], as nn.Conv2d does."""
        if input.device.type != "cpu" or input.ndim != 4 or len(input) < MIN_IMAGES:
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
        """Return where in the kernel the input starts for each output pixel of an axis; [] if one misses part of it."""
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], int(self.padding[axis])
        starts = [padding - stride * i for i in range((size + 2 * padding - kernel) // stride + 1)]
        return starts if all(0 <= start <= kernel - size for start in starts) else []


def use_fast_small_convolutions(net: nn.Module) -> None:
    """Turn the network's ungrouped, undilated, zero-padded convolutions into `Conv2d`, in place."""
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Conv2d  # keeps parameters, hooks and names


def _is_plain(conv: nn.Conv2d) -> bool:
    numbers = not isinstance(conv.padding, str)
    return numbers and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
