"""Three pretrainings of ResNet-18 by Barlow Twins that bench_time_to_quality.py compares, each as its users run it.

All see only the train part. Ours and classic start from the same weights, lightly from those that the same seed gives
a network of three input channels, since its transforms expect colour. Ours takes its views from the store, batch by
batch; the others open the image files one by one.
"""

import functools
import itertools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.functional import normalize

from augmentations.transform_utils import denormalise
from dataset_loader.image_store import open_store
from dataset_loader.xrays import XRays
from self_sup_classes.backbones import library_network
from selfsup_task.pretraining import EPOCHS, PretrainConfig, build_model, loss_of_views, pretraining_step
from utils.hardware import choose_device, choose_precision, placed, prepare
from utils.optimisation import build_optimizer, gradient_step, lr_multiplier
from utils.seeds import epoch_order, mixed_seed
from utils.training_utils import check_batch_size

CLASSIC_LR, CLASSIC_DECAY, CLASSIC_WIDTH, CLASSIC_LAMBDA = 2e-3, 1e-5, 512, 5e-3  # the original project's
# Those of docs.lightly.ai/examples/barlowtwins.html, which keeps its learning rate constant and switches blur off
LIGHTLY_LR, LIGHTLY_WIDTHS, LIGHTLY_BLUR = 0.06, (512, 2048, 2048), 0.0
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of lightly's transforms
MOMENTS = 10_000  # steps per epoch of our schedule when the clock drives it


@dataclass(frozen=True)
class Pretraining:
    """A network and how it is trained.

    backbone       views as `plain_view` gives them, float32 [N, 1, R, R] -> features [N, 512, ...]; shares the weights
    step           takes one optimiser step, given how much of the time has passed, 0 to 1
    setup_seconds  what has to be done once before the first step and counts as pretraining
    """

    backbone: nn.Module
    step: Callable[[float], None]
    setup_seconds: float = 0.0


def ours(config: PretrainConfig, xrays: XRays) -> Pretraining:
    """Return the pretraining of train_barlow_twins.py; warmup and cosine keep their shares of the time."""
    device = prepare(config.device, config.threads)
    config = replace(config, num_epochs=config.num_epochs or EPOCHS)  # that of the schedule
    model = placed(build_model(config), device)
    step = pretraining_step(loss_of_views(model, config), xrays.batch, config)
    optimizer, dtype = build_optimizer(model, config), choose_precision(config.precision, device)
    batches = _batches(xrays.indices("train"), config)

    def take(progress: float) -> None:
        forward = functools.partial(step, *next(batches))
        moment = int(progress * config.num_epochs * MOMENTS)
        lr = config.lr * lr_multiplier(moment, MOMENTS, config)
        gradient_step(model, optimizer, forward, lr, config.gradient_clip, dtype)

    return Pretraining(model.backbone, take, _decoding_seconds(xrays, config.stored_size))


def classic(config: PretrainConfig, xrays: XRays, workers: int) -> Pretraining:
    """Return the original project's recipe in the usual loop: Adam and one cosine over the whole time, no warmup."""
    device = _start(config)
    network = ClassicBarlowTwins(CLASSIC_WIDTH, config.random_seed).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=CLASSIC_LR, weight_decay=CLASSIC_DECAY)
    views = Twice(classic_transform(config.img_res))
    batches = _endless(ImageViews(train_files(xrays), "L", views), config.batch_size, workers)

    def step(progress: float) -> None:
        y1, y2 = (y.to(device) for y in next(batches))  # [B, 1, R, R] each
        optimizer.param_groups[0]["lr"] = CLASSIC_LR * 0.5 * (1 + math.cos(math.pi * progress))
        loss = network(y1, y2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Pretraining(without_head(network.net), step)


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

    def __init__(self, d: int, seed: int):
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
    return on + CLASSIC_LAMBDA * off


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


def by_lightly(config: PretrainConfig, xrays: XRays, workers: int, batch_size: int) -> Pretraining:
    """Return lightly's example of Barlow Twins, at our image size, on gray images in three equal channels."""
    from lightly.loss import BarlowTwinsLoss  # pyright: ignore[reportMissingImports]
    from lightly.models.modules.heads import BarlowTwinsProjectionHead  # pyright: ignore[reportMissingImports]

    device = _start(config)
    backbone = without_head(plain_resnet18(3, config.random_seed))
    network = nn.Sequential(backbone, nn.Flatten(), BarlowTwinsProjectionHead(*LIGHTLY_WIDTHS)).to(device)
    criterion = BarlowTwinsLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=LIGHTLY_LR)
    batches = _endless(ImageViews(train_files(xrays), "RGB", _lightly_views(config.img_res)), batch_size, workers)

    def step(progress: float) -> None:
        x0, x1 = (x.to(device) for x in next(batches))  # [B, 3, R, R] each
        loss = criterion(network(x0), network(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Pretraining(InColour(backbone), step)


def _lightly_views(size: int) -> Callable[[Image.Image], list[Tensor]]:
    """Return the example's transform: PIL "RGB" -> two views [3, size, size]."""
    from lightly.transforms.byol_transform import (  # pyright: ignore[reportMissingImports]
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )

    first = BYOLView1Transform(input_size=size, gaussian_blur=LIGHTLY_BLUR)
    return BYOLTransform(first, BYOLView2Transform(input_size=size, gaussian_blur=LIGHTLY_BLUR))


class InColour(nn.Module):
    """A network for colour images that is given views of one channel, normalised as ours are."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, y: Tensor) -> Tensor:
        """Return the network's output for y [N, 1, R, R], normalised again as lightly does."""
        colour = denormalise(y).expand(-1, 3, -1, -1)
        return self.backbone(normalize(colour, IMAGENET_MEAN, IMAGENET_STD))


class Twice:
    """Two views of an image by one random transform."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]):
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Return two views."""
        return [self.transform(image), self.transform(image)]


class ImageViews(Dataset[list[Tensor]]):
    """The views of image files, each opened with PIL in `mode` whenever it is asked for."""

    def __init__(self, files: list[Path], mode: str, views: Callable[[Image.Image], list[Tensor]]):
        self.files, self.mode, self.views = files, mode, views

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.files[index]) as image:
            return self.views(image.convert(self.mode))


def train_files(xrays: XRays) -> list[Path]:
    """Return the image files of the train part."""
    return [xrays.columns.root / path for path in xrays.columns.paths[xrays.indices("train")]]


def _batches(train: np.ndarray, config: PretrainConfig) -> Iterator[tuple[Tensor, int, int]]:
    """Yield what the engine gives a step: indices [B], epoch, step in the epoch; full batches only."""
    check_batch_size(config.batch_size, len(train))
    for epoch in itertools.count():
        order = torch.from_numpy(epoch_order(train, config.random_seed, epoch))
        for number in range(len(order) // config.batch_size):
            yield order[number * config.batch_size :][: config.batch_size], epoch, number


def _endless(images: ImageViews, batch_size: int, workers: int) -> Iterator[Any]:
    """Yield shuffled full batches of views, a list of [B, C, R, R], epoch after epoch."""
    check_batch_size(batch_size, len(images))
    loader = DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        # users have the default of their platform, the first; a spawned process would spawn its workers too, in seconds
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
    )
    while True:
        yield from loader


def _start(config: PretrainConfig) -> torch.device:
    """Set seed and threads, and nothing else that our own scripts set; return the device."""
    torch.manual_seed(config.random_seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    return choose_device(config.device)


def _decoding_seconds(xrays: XRays, size: int) -> float:
    """Return the seconds in which all images are decoded into a store, as before our first step."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        open_store(xrays.columns.root, list(xrays.columns.paths), size, Path(folder), show_progress=False)
        return time.perf_counter() - start
