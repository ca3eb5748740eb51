"""The tutorial's job in PyTorch: channels_last, inference_mode, two workers; one JSON line at its end.

Modes: `fit` runs the frozen base in every step; `features` runs it once and trains the head on its outputs; `finetune`
does that and then trains the top of the base.
"""

import json
import sys
import time

import torch
import torchvision
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch_mobilenet import make_base, pool
from torchvision.transforms import v2


def main(job):
    torch.manual_seed(job["seed"])
    train, val = loaders(job)
    base = make_base(job["weights"])
    num_classes = len(job["class_names"])
    head = torch.nn.Linear(1280, 1 if num_classes == 2 else num_classes)
    torch.nn.init.xavier_uniform_(head.weight)
    torch.nn.init.zeros_(head.bias)

    def frozen(x):
        with torch.inference_mode():
            return pool(base(x.contiguous(memory_format=torch.channels_last)))

    if job["mode"] == "fit":
        fit(head.parameters(), lambda x: head(frozen(x).clone()), train, val, job["epochs"], job["learning_rate"])
        return {"probe": accuracy(lambda x: head(frozen(x)), val)}
    pooled = [stored(frozen, split, job["batch_size"], shuffle=split is train) for split in (train, val)]
    fit(head.parameters(), head, *pooled, job["epochs"], job["learning_rate"])
    result = {"probe": accuracy(head, pooled[1])}
    if job["mode"] == "finetune":
        first = int(job["trainable_from"].removeprefix("block_")) + 1  # after the stem and expanded_conv
        below, above = base[:first], base[first:]

        def whole(x):
            with torch.no_grad():
                x = below(x.contiguous(memory_format=torch.channels_last))
            return head(pool(above(x)))

        parameters = [*above.parameters(), *head.parameters()]
        seconds = fit(parameters, whole, train, val, job["finetune_epochs"], job["finetune_learning_rate"])
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


def fit(parameters, model, train, val, epochs, learning_rate):
    """Trains, with validation after each epoch; returns the seconds of the training part of each."""
    optimizer, seconds = torch.optim.Adam(parameters, learning_rate), []
    for epoch in range(epochs):
        started = time.perf_counter()
        for x, y in train:
            optimizer.zero_grad()
            logits = model(x)
            if logits.shape[1] == 1:
                loss = functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
            else:
                loss = functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
        print(f"epoch {epoch + 1}: val accuracy {accuracy(model, val):.4f}, {seconds[-1]:.2f} s", flush=True)
    return seconds


@torch.no_grad()
def accuracy(model, split):
    right = total = 0
    for x, y in split:
        logits = model(x)
        predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
        right, total = right + int((predicted == y).sum()), total + len(y)
    return right / total


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
