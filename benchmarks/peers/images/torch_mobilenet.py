"""torchvision's MobileNetV2 with Keras' arrays: the same function, in channels_last."""

import numpy as np
import torch
import torchvision
from torch import nn


def make_base(weights):
    """The feature extractor without pooling; `weights` is the file that `benchmarks/peers.py` writes."""
    base = torchvision.models.mobilenet_v2(weights=None).features
    arrays = np.load(weights)
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in arrays.files))
    layers = [m for m in base.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for name, layer in zip(names, layers, strict=True):
            if isinstance(layer, nn.Conv2d):
                kernel = arrays[f"{name}/0"]
                order = (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)
                layer.weight.copy_(torch.from_numpy(kernel.transpose(order)))
            else:
                layer.eps = 1e-3
                targets = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                for i, target in enumerate(targets):
                    target.copy_(torch.from_numpy(arrays[f"{name}/{i}"]))
    for sequence in [m for m in base.modules() if isinstance(m, nn.Sequential)]:
        first = sequence[0] if len(sequence) else None
        if isinstance(first, nn.Conv2d) and first.stride == (2, 2):  # Keras pads even sizes after the image alone
            first.padding = (0, 0)
            sequence.insert(0, nn.ZeroPad2d((0, 1, 0, 1)))
    return base.eval().to(memory_format=torch.channels_last)


def pool(maps):
    return maps.mean((2, 3))
