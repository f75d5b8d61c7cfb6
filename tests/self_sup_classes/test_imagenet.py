"""ImageNet's weights of both libraries: what a network sees of an X-ray is what it saw of a gray image in colours."""

from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from augmentations.transform_utils import GRAY_MEAN, GRAY_STD
from self_sup_classes.backbones import TIMM
from self_sup_classes.initialisation import start_from
from self_sup_classes.provenance import NOTHING_SEEN
from utils.config import UserError

TORCHVISIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The scale of each network's weights, and where the first convolution and what holds its constant end.
SCALES = {
    "resnet18": (*TORCHVISIONS, "bn1"),
    "densenet121": (*TORCHVISIONS, "features.norm0"),
    "timm/tf_efficientnet_lite0": ((0.5,) * 3, (0.5,) * 3, "bn1"),
    "timm/convnext_atto": (*TORCHVISIONS, "stem.0"),
    "timm/repvgg_a0": (*TORCHVISIONS, "stem"),
}


def library_network(name: str) -> nn.Module:
    """The library's own network for colours, whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    net = timm.create_model(name.removeprefix(TIMM)) if name.startswith(TIMM) else models.get_model(name)
    for key, value in net.state_dict().items():
        if "running" in key:
            value.copy_(torch.rand(value.shape) + 0.5)
    return net.eval()


def output_of(net: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer returns for images."""
    kept: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda *seen: kept.append(seen[2]))  # type: ignore[func-returns-value]  # a hook may return None
    net.eval()(x)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", SCALES)
def test_the_first_layer_sees_the_same_but_for_the_border(tmp_path: Path, name: str, in_channels: int) -> None:
    mean, std, layer = SCALES[name]
    colour = library_network(name)
    torch.save(colour.state_dict(), tmp_path / "imagenet.pth")
    start = start_from(f"imagenet:{tmp_path / 'imagenet.pth'}", name, in_channels, seed=0)
    gray = torch.rand(2, 1, 64, 64)
    shown = (gray.expand(-1, 3, -1, -1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = output_of(colour, layer, shown)
    x = ((gray - GRAY_MEAN) / GRAY_STD).expand(-1, in_channels, -1, -1)
    found = output_of(start.backbone.net, layer, x)
    inner = slice(2, -2)
    torch.testing.assert_close(found[..., inner, inner], expected[..., inner, inner], rtol=1e-4, atol=1e-4)
    assert start.provenance is NOTHING_SEEN


def test_a_network_without_a_border_gives_the_same_features(tmp_path: Path) -> None:
    colour = library_network("timm/convnext_atto")
    safetensors.torch.save_file(colour.state_dict(), tmp_path / "model.safetensors")
    backbone = start_from(f"imagenet:{tmp_path / 'model.safetensors'}", "timm/convnext_atto", 1, seed=0).backbone
    gray = torch.rand(2, 1, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in TORCHVISIONS)
    shown = (gray.expand(-1, 3, -1, -1) - mean) / std
    colour.reset_classifier(0)  # pyright: ignore[reportCallIssue]  # timm's
    torch.testing.assert_close(backbone.eval()((gray - GRAY_MEAN) / GRAY_STD), colour(shown), rtol=1e-4, atol=1e-4)


def test_tensors_under_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    name = "timm/tf_efficientnet_lite0"
    state = library_network(name).state_dict()
    other = {f"_{place}": value for place, (key, value) in enumerate(state.items()) if "num_batches" not in key}
    torch.save(other, tmp_path / "other.pth")
    torch.save(state, tmp_path / "own.pth")
    found, own = (start_from(f"imagenet:{tmp_path / file}", name, 1, seed=0) for file in ("other.pth", "own.pth"))
    assert "names are unknown, so its first 245 tensors are taken in their order" in found.note
    mine, theirs = found.backbone.net.state_dict(), own.backbone.net.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs if "num_batches" not in key)
    first, last = next(iter(other)), list(other)[-3]
    other[first], other[last] = other[last], other[first]
    torch.save(other, tmp_path / "swapped.pth")
    with pytest.raises(UserError, match="does not fit"):
        start_from(f"imagenet:{tmp_path / 'swapped.pth'}", name, 1, seed=0)


def test_densenets_file_of_old_names_loads(tmp_path: Path) -> None:
    state = library_network("densenet121").state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    for part in ("norm1", "conv1", "norm2", "conv2"):  # as torchvision's file has them
        old = {key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}."): value for key, value in old.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    found = start_from(f"imagenet:{tmp_path / 'densenet121.pth'}", "densenet121", 1, seed=0).backbone.net.state_dict()
    assert torch.equal(
        found["features.denseblock4.denselayer16.conv2.weight"], state["features.denseblock4.denselayer16.conv2.weight"]
    )


def test_a_convolution_that_normalises_its_weights_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("nf_regnet_b1").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="first convolution of timm/nf_regnet_b1 normalises its weights"):
        start_from(f"imagenet:{tmp_path / 'weights.pth'}", "timm/nf_regnet_b1", 1, seed=0)


def test_timms_weights_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, path: str, hash_prefix: str | None) -> None:
        asked.append(url)
        safetensors.torch.save_file(timm.create_model("convnext_atto").state_dict(), path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        start_from("imagenet", "timm/convnext_atto", 1, seed=0)
    assert asked == ["https://huggingface.co/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors"]
    with pytest.raises(UserError, match="timm has no weights of timm/efficientnet_lite1"):
        start_from("imagenet", "timm/efficientnet_lite1", 1, seed=0)


def test_a_start_that_is_no_file_says_what_was_meant(tmp_path: Path) -> None:
    for written, meant in {"Shared": "shared", "ImageNet": "imagenet", "Random": "random"}.items():
        with pytest.raises(UserError, match=f"there is no file .*did you mean '{meant}'"):
            start_from(written, "resnet18", 1, seed=0)
    with pytest.raises(UserError, match=f"{tmp_path} is a folder; .* of which it has none"):
        start_from(str(tmp_path), "resnet18", 1, seed=0)
    (tmp_path / "resnet18_final_state_dict.pt").touch()
    with pytest.raises(UserError, match=f"is a folder; .*: {tmp_path}/resnet18_final_state_dict.pt"):
        start_from(str(tmp_path), "resnet18", 1, seed=0)


@pytest.mark.parametrize("name", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_without_a_network_both_ways_to_imagenet_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*arguments: object, **keywords: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"same command once there is a network; or download https://.*{name.removeprefix(TIMM)}.*"
        "imagenet:FILE under a --run-name of its own; or give random",
    ):
        start_from("imagenet", name, 1, seed=0)
