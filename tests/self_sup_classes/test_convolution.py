"""Convolutions on small inputs: torch's own values and gradients, whatever the shape."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from self_sup_classes.backbones import Backbone, torchvision_model
from self_sup_classes.convolution import MIN_IMAGES, Conv2d, use_fast_small_convolutions

SHAPES = [  # kernel, stride, padding, size
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (2, 2)),
    ((3, 3), (2, 2), (1, 1), (2, 2)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (1, 2)),
    ((3, 3), (1, 1), (1, 1), (2, 5)),  # not all is seen along the second axis
    ((3, 3), (1, 1), (1, 1), (3, 3)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((1, 1), (2, 2), (0, 0), (2, 2)),  # a stride that skips pixels
    ((3, 3), (1, 1), (0, 0), (3, 3)),
    ((5, 5), (2, 2), (2, 2), (3, 3)),
    ((5, 5), (1, 1), (2, 2), (3, 3)),
    ((3, 5), (1, 2), (1, 2), (2, 3)),
    ((5, 3), (2, 1), (2, 1), (3, 2)),
    ((3, 3), (1, 1), (1, 1), (4, 4)),  # patches
    ((3, 3), (2, 2), (1, 1), (8, 8)),
    ((3, 3), (2, 2), (1, 1), (7, 7)),
    ((1, 1), (2, 2), (0, 0), (8, 8)),
    ((3, 1), (2, 1), (1, 0), (5, 3)),
    ((3, 3), (1, 1), (1, 1), (5, 5)),  # torch's own
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel, stride, padding, size", SHAPES)
def test_values_and_gradients_are_those_of_torchs_convolution(
    kernel: Any, stride: Any, padding: Any, size: Any, layout: torch.memory_format, bias: bool
) -> None:
    torch.manual_seed(0)
    ours = Conv2d(3, 4, kernel, stride, padding, bias=bias).double().to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    x = torch.randn(MIN_IMAGES, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.conv2d(x, ours.weight, ours.bias, stride, padding)
    found = ours(x)
    torch.testing.assert_close(found, expected)
    weighting = torch.randn_like(expected)
    wanted = [x, *ours.parameters()]
    torch.testing.assert_close(_gradients(found, weighting, wanted), _gradients(expected, weighting, wanted))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_under_autocast_it_is_torchs_convolution_to_the_rounding_of_bfloat16(bias: bool, size: int) -> None:
    torch.manual_seed(0)
    ours = Conv2d(3, 4, 3, padding=1, bias=bias)
    x = torch.randn(MIN_IMAGES, 3, size, size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x), F.conv2d(x, ours.weight, ours.bias, padding=1)
    assert found.dtype == torch.bfloat16
    weighting = torch.randn_like(expected)
    wanted = [x, *ours.parameters()]
    for mine, theirs in zip(_gradients(found, weighting, wanted), _gradients(expected, weighting, wanted), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


@pytest.mark.parametrize("size", [2, 4])
def test_another_type_of_input_is_refused_as_by_torch(size: int) -> None:
    with pytest.raises(RuntimeError, match="type"):
        Conv2d(3, 4, 3, padding=1)(torch.randn(MIN_IMAGES, 3, size, size, dtype=torch.float64))


def test_gradients_in_bfloat16_never_read_memory_that_nobody_wrote() -> None:
    ours, x = Conv2d(64, 128, 3, 2, 1), torch.randn(8, 64, 1, 1)  # fewer than MIN_IMAGES
    for _ in range(20):
        dirty = [torch.full((n,), torch.nan) for n in (64, 1024, 16384, 262144) for _ in range(12)]
        del dirty  # what the next allocations may get
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)
        assert torch.autograd.grad(y.float().square().sum(), ours.weight)[0].isfinite().all()


def _gradients(y: Tensor, weighting: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, wanted, weighting, retain_graph=True)


@pytest.mark.parametrize(
    "images, size, calls", [(MIN_IMAGES, 2, 0), (MIN_IMAGES, 4, 0), (MIN_IMAGES, 5, 1), (MIN_IMAGES - 1, 2, 1)]
)
def test_torchs_convolution_is_used_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, images: int, size: int, calls: int
) -> None:
    seen: list[Tensor] = []
    plain = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: seen.append(x) or plain(self, x))
    Conv2d(3, 4, 3, padding=1)(torch.randn(images, 3, size, size))
    assert len(seen) == calls


def test_only_convolutions_that_can_be_faster_are_exchanged() -> None:
    kinds: list[dict[str, Any]] = [{}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}, {"padding": "same"}]
    net = nn.Sequential(*(nn.Conv2d(2, 2, 3, **kind) for kind in kinds))
    use_fast_small_convolutions(net)
    assert [type(module) is Conv2d for module in net.children()] == [True, False, False, False, False]
    for fast in (True, False):
        modules = Backbone("resnet18", 1, fast_small_convolutions=fast).modules()
        assert {type(m) for m in modules if isinstance(m, nn.Conv2d)} == {Conv2d if fast else nn.Conv2d}


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet50", 32), ("efficientnet_b0", 48)])
def test_a_network_gives_what_torchvisions_does(name: str, size: int) -> None:
    torch.manual_seed(0)
    ours, plain = torchvision_model(name, 3).double(), models.get_model(name).double()
    use_fast_small_convolutions(ours)
    plain.load_state_dict(ours.state_dict())
    assert [key for key, _ in ours.named_modules()] == [key for key, _ in plain.named_modules()]
    x = torch.randn(MIN_IMAGES, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
    ours(x).square().sum().backward()
    plain(x).square().sum().backward()
    for (key, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, key=key: f"{key}: {text}")
