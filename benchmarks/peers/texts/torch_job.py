"""The job on texts in transformers on PyTorch, batches padded to their longest; one JSON line at its end.

Modes: `fit` runs the frozen network in every step; `features` runs it once and trains the head on its outputs;
`finetune` does that and then trains its last layers.
"""

import json
import sys

import torch
from libraries import load_torch, padded, pooled, read_tokens
from torch.utils.data import DataLoader, TensorDataset
from torch_fit import accuracy, fit, make_head


def main(job):
    torch.manual_seed(job["seed"])
    model = load_torch(job)
    train, val = (loader(job, name) for name in ("train", "val"))
    head = make_head(model.config.hidden_size, job["num_classes"])

    def whole(x):
        return head(pooled(job, model, x))

    def frozen(x):
        with torch.inference_mode():
            return pooled(job, model, x)

    if job["mode"] == "fit":
        fit(head.parameters(), lambda x: head(frozen(x).clone()), train, val, job["probe"])
        return {"probe": accuracy(whole, val)}
    features = [stored(frozen, split, job["batch_size"], shuffle=split is train) for split in (train, val)]
    fit(head.parameters(), head, *features, job["probe"])
    result = {"probe": accuracy(head, features[1])}
    if job["mode"] == "finetune":
        model.requires_grad_(False)
        trainable = model.encoder.layer[job["num_frozen"] :].requires_grad_(True)
        seconds = fit([*trainable.parameters(), *head.parameters()], whole, train, val, job["finetune"])
        result |= {"finetune": accuracy(whole, val), "finetune_epochs": seconds}
    return result


def loader(job, name):
    """Batches padded to their longest, as the collator of transformers makes them."""
    tokens, labels = read_tokens(job, name)

    def collate(rows):
        ids, mask = padded([tokens[i] for i in rows])
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return batch, torch.tensor([labels[i] for i in rows])

    return DataLoader(range(len(tokens)), job["batch_size"], shuffle=name == "train", collate_fn=collate)


def stored(frozen, split, batch_size, shuffle):
    pairs = [(frozen(x).clone(), y) for x, y in split]
    return DataLoader(TensorDataset(*map(torch.cat, zip(*pairs, strict=True))), batch_size, shuffle=shuffle)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
