"""The tutorial's job in PyTorch: channels_last, inference_mode, two workers; one JSON line at its end.

Modes: `fit` runs the frozen base in every step; `features` runs it once and trains the head on its outputs; `finetune`
does that and then trains the top of the base.
"""

import json
import sys

import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset
from torch_fit import accuracy, fit, make_head
from torch_mobilenet import make_base, pool
from torchvision.transforms import v2


def main(job):
    torch.manual_seed(job["seed"])
    train, val = loaders(job)
    base = make_base(job["weights"])
    head = make_head(1280, job["num_classes"])

    def frozen(x):
        with torch.inference_mode():
            return pool(base(x.contiguous(memory_format=torch.channels_last)))

    if job["mode"] == "fit":
        fit(head.parameters(), lambda x: head(frozen(x).clone()), train, val, job["probe"])
        return {"probe": accuracy(lambda x: head(frozen(x)), val)}
    pooled = [stored(frozen, split, job["batch_size"], shuffle=split is train) for split in (train, val)]
    fit(head.parameters(), head, *pooled, job["probe"])
    result = {"probe": accuracy(head, pooled[1])}
    if job["mode"] == "finetune":
        first = int(job["trainable_from"].removeprefix("block_")) + 1  # after the stem and expanded_conv
        below, above = base[:first], base[first:]

        def whole(x):
            with torch.no_grad():
                x = below(x.contiguous(memory_format=torch.channels_last))
            return head(pool(above(x)))

        parameters = [*above.parameters(), *head.parameters()]
        seconds = fit(parameters, whole, train, val, job["finetune"])
        result |= {"finetune": accuracy(whole, val), "finetune_epochs": seconds}
    return result


def loaders(job):
    transform = v2.Compose(
        [
            v2.Resize(job["image_size"]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    options = {"batch_size": job["batch_size"], "num_workers": 2, "persistent_workers": True}
    return [
        DataLoader(
            torchvision.datasets.ImageFolder(f"{job['folder']}/{name}", transform), shuffle=name == "train", **options
        )
        for name in ("train", "val")
    ]


def stored(frozen, split, batch_size, shuffle):
    pairs = [(frozen(x).clone(), y) for x, y in split]
    return DataLoader(TensorDataset(*map(torch.cat, zip(*pairs, strict=True))), batch_size, shuffle=shuffle)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
