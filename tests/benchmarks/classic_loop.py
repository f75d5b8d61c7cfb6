"""What the benchmarks compare with: Barlow Twins as most repositories write it, image by image."""

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from self_sup_classes.backbones import library_network
from utils.seeds import mixed_seed

LAMBDA = 5e-3


def plain_resnet18(in_channels: int, seed: int) -> nn.Module:
    """Return torchvision's ResNet-18 with the weights that `random_backbone` gives this seed; the head's differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed("backbone", seed))
        return library_network("resnet18", in_channels)


def without_head(resnet: nn.Module) -> nn.Sequential:
    """Return the same modules but for the last: [N, C, R, R] -> features [N, 512, 1, 1]."""
    return nn.Sequential(*list(resnet.children())[:-1])


class ClassicBarlowTwins(nn.Module):
    """The network, with a projector of one linear layer [512 -> d], and the loss as in most repositories."""

    def __init__(self, d: int, seed: int = 0):
        super().__init__()
        self.net = plain_resnet18(1, seed)
        self.net.fc = nn.Linear(512, d, bias=False)

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        """Return the loss of two views [N, 1, R, R]."""
        return classic_loss(self.net(y1), self.net(y2))


def classic_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Return the loss of embeddings [N, D]: BatchNorm, the D x D matrix, its flattened off-diagonal."""
    z1, z2 = (nn.functional.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = z1.T @ z2 / len(z1)
    on = torch.diagonal(c).add_(-1).pow_(2).sum()
    n = len(c)
    off = c.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten().pow_(2).sum()
    return on + LAMBDA * off


def classic_transform(size: int) -> v2.Compose:
    """Return the original project's final views, image by image: PIL "L" -> normalised float32 [1, size, size]."""
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomEqualize(),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))]),
            v2.RandomPerspective(0.15),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.Lambda(_noisy)]),
            v2.Normalize([0.449], [0.226]),
        ]
    )


def _noisy(x: Tensor) -> Tensor:
    """Add Gaussian noise of 6 to 10% of the image's mean; a function with a name, so that DataLoader can pickle it."""
    return (x + torch.randn_like(x) * x.mean() * (0.06 + 0.04 * torch.rand(()))).clamp(0, 1)
