"""Fast convolutions with outputs of 1 to 16 pixels, as in the last blocks of a ResNet on X-rays of 32 to 64 pixels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_IMAGES = 16  # in a batch; below, rearranging the kernel costs more than it saves
MAX_PIXELS = 16  # of an output


class Conv2d(nn.Conv2d):
    """torch's own convolution, computed on a CPU as one matrix product where the output is small.

    There PyTorch's convolutions are slow, the backward pass most (tests/benchmarks/bench_small_images.py). Where each
    output pixel sees the whole input, most of a padded kernel covers zeros, which are left out; elsewhere the input's
    patches become the rows of a matrix. Neither has second derivatives. Same parameters, same names, same values to
    rounding. On other devices, for larger outputs and for batches of fewer than MIN_IMAGES, it is torch's convolution;
    not in bfloat16, where PyTorch 2.14 reads memory that nobody wrote for the gradient of a kernel larger than its
    input, so that weights became NaN in some runs at 16 px.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Return [N, O, H', W'] for [N, C, H, W], as nn.Conv2d does."""
        if input.device.type != "cpu" or input.ndim != 4:
            return super().forward(input)
        odd = len(input) < MIN_IMAGES or input.dtype != self.weight.dtype  # of another type, which torch refuses
        if odd and not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        height, width = input.shape[-2:]
        rows, columns = self._starts(height, axis=0), self._starts(width, axis=1)
        if not 0 < len(rows) * len(columns) <= MAX_PIXELS:
            return super().forward(input)
        if self._sees_all(rows, height, axis=0) and self._sees_all(columns, width, axis=1):
            return self._whole_input(input, rows, columns)
        return self._patches(input)

    def _starts(self, size: int, axis: int) -> list[int]:
        """Return where in the kernel the input starts for each output pixel of an axis; negative is outside it."""
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], int(self.padding[axis])
        return [padding - stride * i for i in range((size + 2 * padding - kernel) // stride + 1)]

    def _sees_all(self, starts: list[int], size: int, axis: int) -> bool:
        return all(0 <= start <= self.kernel_size[axis] - size for start in starts)

    def _whole_input(self, input: Tensor, rows: list[int], columns: list[int]) -> Tensor:
        pixels = _autocast(input).permute(0, 2, 3, 1)
        out = _WholeInputConvolution.apply(pixels, self.weight, rows, columns)  # [N, H' * W' * O]
        out = out.view(len(input), len(rows), len(columns), self.out_channels).permute(0, 3, 1, 2)
        return self._with_bias(out)

    def _patches(self, input: Tensor) -> Tensor:
        out = _PatchConvolution.apply(_autocast(input), _autocast(self.weight), self.stride, self.padding)
        return self._with_bias(out.permute(0, 3, 1, 2))

    def _with_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + _autocast(self.bias)[:, None, None]


class _WholeInputConvolution(torch.autograd.Function):
    """A convolution whose output pixels all see the whole input, as one matrix product."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, rows: list[int], columns: list[int]) -> Tensor:
        """Return [N, H' * W' * O] for pixels [N, H, W, C]; the input starts in the kernel at `rows` and `columns`."""
        height, width = pixels.shape[1:3]
        kernel = weight.to(pixels.dtype).permute(2, 3, 0, 1)  # [K, K, O, C]
        ctx.windows = [
            (slice(top, top + height), slice(left, left + width)) for top in rows for left in columns
        ]  # of the kernel, one for each output pixel
        seen = torch.stack([kernel[window].permute(2, 0, 1, 3) for window in ctx.windows])  # [H' * W', O, H, W, C]
        ctx.save_for_backward(pixels, weight, seen)
        return pixels.flatten(1) @ seen.flatten(2).flatten(0, 1).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch's stubs
        pixels, weight, seen = ctx.saved_tensors
        of_pixels = of_weight = None
        if ctx.needs_input_grad[0]:
            of_pixels = (gradient @ seen.flatten(2).flatten(0, 1)).view_as(pixels)
        if ctx.needs_input_grad[1]:
            of_seen = (gradient.T @ pixels.flatten(1)).view_as(seen)
            of_weight = torch.zeros_like(weight)
            kernel = of_weight.permute(2, 3, 0, 1)
            for window, part in zip(ctx.windows, of_seen, strict=True):
                kernel[window].add_(part.permute(1, 2, 0, 3))
        return of_pixels, of_weight, None, None


class _PatchConvolution(torch.autograd.Function):
    """A convolution as the product of the input's patches with the kernel; patches are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        """Return [N, H', W', O] for [N, C, H, W]."""
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        patches = _patches_of(_padded(input, padding), weight.shape[2:], stride)  # [N, H', W', K, K, C]
        return patches.flatten(3) @ weight.permute(0, 2, 3, 1).flatten(1).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch's stubs
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, len(weight))  # [N * H' * W', O]
        kernel = weight.permute(0, 2, 3, 1)  # [O, K, K, C]
        padded = _padded(input, ctx.padding)
        patches = _patches_of(padded, weight.shape[2:], ctx.stride)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ patches.flatten(3).flatten(0, 2)).view(kernel.shape).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        of_patches = (rows @ kernel.flatten(1)).view(patches.shape)
        total = torch.zeros_like(padded, dtype=torch.promote_types(padded.dtype, torch.float32))
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                _window(total, i, j, patches.shape[1:3], ctx.stride).add_(of_patches[:, :, :, i, j])
        (top, left), (height, width) = ctx.padding, input.shape[-2:]
        inner = total[:, top : top + height, left : left + width].to(input.dtype)
        return inner.permute(0, 3, 1, 2), of_weight, None, None


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor in the type of autocast, where that is on."""
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def _padded(input: Tensor, padding: tuple[int, int]) -> Tensor:
    """[N, C, H, W] -> [N, H + 2P, W + 2P, C] with zeros around it."""
    return F.pad(input.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))


def _patches_of(padded: Tensor, kernel: torch.Size, stride: tuple[int, int]) -> Tensor:
    """[N, H, W, C] -> [N, H', W', K, K, C], what each output pixel sees."""
    size = torch.Size((padded.shape[1 + axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1))
    windows = [_window(padded, i, j, size, stride) for i in range(kernel[0]) for j in range(kernel[1])]
    return torch.stack(windows, 3).unflatten(3, (kernel[0], kernel[1]))


def _window(padded: Tensor, i: int, j: int, size: torch.Size, stride: tuple[int, int]) -> Tensor:
    """The pixels [N, H', W', C] that the kernel's place (i, j) meets."""
    return padded[
        :, i : i + stride[0] * (size[0] - 1) + 1 : stride[0], j : j + stride[1] * (size[1] - 1) + 1 : stride[1]
    ]


def use_fast_small_convolutions(net: nn.Module) -> None:
    """Turn the network's ungrouped, undilated, zero-padded convolutions into `Conv2d`, in place."""
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Conv2d  # keeps parameters, hooks and names


def _is_plain(conv: nn.Conv2d) -> bool:
    numbers = not isinstance(conv.padding, str)
    return numbers and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
