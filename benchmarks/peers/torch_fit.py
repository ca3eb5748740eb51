"""The training loop of the jobs in PyTorch."""

import math
import time

import torch
from torch.nn import functional


def fit(parameters, model, train, val, phase):
    """Trains as `phase` of a config says, with validation after each epoch; seconds of the training part of each."""
    parameters, total = list(parameters), phase["epochs"] * len(train)
    warmup = max(1, round(phase["warmup_epochs"] * len(train)))

    def rate(step):
        if phase["schedule"] == "constant":
            return min(1, (step + 1) / warmup)
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))

    optimizer = torch.optim.AdamW(parameters, phase["learning_rate"], weight_decay=phase["weight_decay"])
    schedule, seconds = torch.optim.lr_scheduler.LambdaLR(optimizer, rate), []
    for epoch in range(phase["epochs"]):
        started = time.perf_counter()
        for x, y in train:
            optimizer.zero_grad()
            logits = model(x)
            if logits.shape[1] == 1:
                loss = functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
            else:
                loss = functional.cross_entropy(logits, y)
            loss.backward()
            if phase["clip_norm"]:
                torch.nn.utils.clip_grad_norm_(parameters, phase["clip_norm"])
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - started)
        print(f"epoch {epoch + 1}: val accuracy {accuracy(model, val):.4f}, {seconds[-1]:.2f} s", flush=True)
    return seconds


@torch.no_grad()
def accuracy(model, split):
    """The share of right answers."""
    right = total = 0
    for x, y in split:
        logits = model(x)
        predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
        right, total = right + int((predicted == y).sum()), total + len(y)
    return right / total


def make_head(features, num_classes):
    """A dense layer initialised as in the other libraries; one output for two classes."""
    head = torch.nn.Linear(features, 1 if num_classes == 2 else num_classes)
    torch.nn.init.xavier_uniform_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head
