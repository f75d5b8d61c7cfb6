"""A batch in micro-batches: the gradient is that of the whole batch, and both passes see the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from self_sup_classes.backbones import Backbone
from self_sup_classes.barlow import BarlowTwins, barlow_twins_loss, mean_view_loss
from utils.optimisation import gradient_step

IMAGES, LAMBDA = 16, 5e-3


class Small(nn.Sequential):
    """What a backbone has: BatchNorm, in-place operations and something random."""

    num_features = 12

    def __init__(self) -> None:
        first = [nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.2)]
        second = [nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)]
        super().__init__(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(dtype: torch.dtype = torch.float64, backbone: nn.Module | None = None) -> BarlowTwins:
    torch.manual_seed(0)
    twins = BarlowTwins(backbone or Small(), [20, 24], LAMBDA)  # type: ignore[arg-type]
    for module in twins.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.load_state_dict({**module.state_dict(), "running_var": torch.rand(module.num_features) + 0.5})
    return twins.to(dtype)


def images(views: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[V, N, 1, 12, 12]: noisy views of the same images."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(1, IMAGES, 1, 12, 12, generator=generator)
    return (shared + torch.randn(views, IMAGES, 1, 12, 12, generator=generator)).to(dtype)


def gradients(twins: BarlowTwins, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*twins.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_with_fixed_statistics_the_gradient_is_that_of_the_whole_batch(
    dtype: torch.dtype, tolerance: float, micro_batches: int, views: int
) -> None:
    twins, y = network(dtype).eval(), images(views, dtype)
    whole = twins(*y)["loss"]
    expected = gradients(twins, whole)
    twins.micro_batch_size = IMAGES // micro_batches
    loss = twins(*y)["loss"]
    assert abs(loss - whole) <= tolerance * whole
    for name, gradient in gradients(twins, loss).items():
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.mark.parametrize("views", [2, 4])
def test_in_training_each_micro_batch_has_its_own_statistics_and_running_ones_move_in_the_first_pass_alone(
    views: int,
) -> None:
    plain, y = network().train(), images(views)
    twins = copy.deepcopy(plain)
    twins.micro_batch_size = 4
    torch.manual_seed(2)  # of dropout
    z = torch.stack([torch.cat([plain.embed(part)[1] for part in view.split(4)]) for view in y])
    expected = barlow_twins_loss(z[0], z[1], LAMBDA).loss if views == 2 else mean_view_loss(z, LAMBDA).loss
    torch.manual_seed(2)
    loss = twins(*y)["loss"]
    found, wanted = gradients(twins, loss), gradients(plain, expected)
    assert torch.equal(loss, expected)
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() <= 1e-12 * wanted[name].norm(), name
    counts = [buffer.item() for name, buffer in twins.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [views * IMAGES // 4] * 3
    assert all(torch.equal(a, b) for a, b in zip(twins.buffers(), plain.buffers(), strict=True))
    assert {one.momentum for one in twins.modules() if isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d)} == {0.1}


def test_each_micro_batch_passes_twice_and_never_more_images_at_once() -> None:
    twins, sizes = network().train(), []
    twins.micro_batch_size = 4
    twins.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    loss = twins(*images(2))["loss"]
    assert sizes == [4] * 8
    loss.backward()
    assert sizes == [4] * 16
    sizes.clear()
    with torch.no_grad():
        twins(*images(2))
    assert sizes == [4] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_with_one_micro_batch_is_that_of_the_whole_batch_to_the_bit(dtype: torch.dtype) -> None:
    one = network(torch.float32, Backbone("resnet18", 1)).train()
    other = copy.deepcopy(one)
    other.micro_batch_size = IMAGES
    y = images(2, torch.float32)
    for twins in (one, other):
        optimizer = torch.optim.SGD([{"params": [*twins.parameters()], "lr_factor": 1.0}], lr=0.1)
        gradient_step(twins, optimizer, lambda twins=twins: twins(*y), 0.1, 1.0, dtype)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
