"""Image networks of torchvision and timm by name, with the stem and the head that suit small images."""

from typing import Any

import timm
import torchvision
from torch import nn
from torchvision.models import ResNet, get_model, list_models
from torchvision.models.vgg import VGG, cfgs, make_layers

from paramtransfer.checks import refusal
from paramtransfer.suggestions import did_you_mean

STEMS = ("imagenet", "cifar")
HEADS = ("small", "original")

_VGGS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}  # torchvision's letters for them


def check_name(key: str, name: str) -> str:
    """The name of a network that torchvision or timm has.

    Raises:
        ValueError: neither has it.
    """
    if name in torchvision_names() or timm.is_model(name):
        return name
    near = did_you_mean(str(name), [*torchvision_names(), *timm.list_models()])
    raise refusal(key, name, f"a network of torchvision or timm{near}")


def torchvision_names() -> list[str]:
    """Torchvision's networks for classification."""
    names: list[str] = list_models(module=torchvision.models)
    return names


def library_network(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A network as torchvision, or else timm, makes it: fresh, or with the library's own weights and head.

    Args:
        name: as the library knows it.
        pretrained: whether to load the library's default weights.
        options: what the library takes, such as `num_classes` or timm's `drop_path_rate`; for a VGG `width`, too: the
            share of its channels.
    """
    if "width" in options and name.removesuffix("_bn") in _VGGS:
        network: nn.Module = _narrow_vgg(name, **options)
    elif name in torchvision_names():
        network = get_model(name, weights="DEFAULT" if pretrained else None, **options)
    else:
        network = timm.create_model(name, pretrained=pretrained, **options)
    return network


def make_network(name: str, *, num_classes: int, stem: str, head: str, **options: Any) -> nn.Module:
    """A fresh network with the stem and the head that suit the images.

    Args:
        name: as torchvision, or else timm, knows it.
        num_classes: outputs.
        stem: `imagenet`, or `cifar`: a ResNet that starts with a 3 x 3 convolution and no pooling; a VGG does anyway.
        head: `original`, or `small`: a VGG that ends with one linear layer on the mean of each channel.
        options: what else the library takes.

    Raises:
        ValueError: the network has no such stem; names the key.
    """
    network = library_network(name, num_classes=num_classes, **options)
    if stem == "cifar" and not isinstance(network, VGG):
        _start_small(name, network)
    if head == "small" and isinstance(network, VGG):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Linear(_last_channels(network), num_classes)
    return network


def _narrow_vgg(name: str, *, width: float, num_classes: int) -> VGG:
    if not width > 0:
        raise refusal("width", width, "above 0")
    family, _, norm = name.partition("_")
    layers = [layer if isinstance(layer, str) else max(1, round(layer * width)) for layer in cfgs[_VGGS[family]]]
    network = VGG(make_layers(layers, batch_norm=bool(norm)), num_classes=num_classes)
    first = nn.Linear(7 * 7 * _last_channels(network), 4096)
    nn.init.normal_(first.weight, std=0.01)
    nn.init.zeros_(first.bias)
    network.classifier[0] = first
    return network


def _last_channels(network: VGG) -> int:
    return [layer for layer in network.features if isinstance(layer, nn.Conv2d)][-1].out_channels


def _start_small(name: str, network: nn.Module) -> None:
    if not isinstance(network, ResNet | timm.models.ResNet) or not isinstance(network.conv1, nn.Conv2d):
        raise refusal("model.stem", "cifar", f"imagenet for {name}: only plain ResNets have the other one")
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
