"""Passes of a network as CUDA graphs: on a fast GPU, small kernels wait for the processor that starts them singly."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def replayed(module: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype) -> Callable[..., dict[str, Tensor]]:
    """Return a function that acts as `module`, in training mode on a CUDA GPU, and replays its passes as CUDA graphs.

    Forward and backward pass are captured once, for inputs as large as `inputs`, and started as a whole from then on;
    calls must be of that size. The module returns a dict of tensors, may draw random numbers from torch's
    generator alone, and must keep its parameters and buffers where they are; their values may change. In eval mode it
    computes as ever, and it is left as it was. Gradients may lie where the next backward pass writes its own: set
    them to None before it, and do not add up those of several passes. Values are those of the module under autocast to
    `dtype` without a cache: the gradients of several uses of a weight are summed in its own type, not in `dtype`.
    """
    gc.collect()  # the graphs of earlier networks refer to themselves, and hold memory
    # gradients come from the stream of the capture, which torch warns of, in all of this process from now on silently
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        torch.cuda.make_graphed_callables(module, tuple(inputs))
    replay = module.forward
    del module.forward  # torch has put it before that of the class
    for buffer, value in zip(module.buffers(), before, strict=True):  # capturing has moved running statistics
        buffer.copy_(value)

    def call(*given: Tensor) -> dict[str, Tensor]:
        assert [y.shape for y in given] == [y.shape for y in inputs], "the graphs are of another size"
        return {name: value.clone() for name, value in replay(*given).items()}  # the next call overwrites them

    return call
