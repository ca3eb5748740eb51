"""100 hostile and 2,000 damaged weight files of either form: each is refused, or gives sound values; none with a pin.

    python benchmarks/attacks/weights.py

The hostile ones are a sound file in which one to three arrays, drawn anew for each, are declared, stored or linked as
Keras never does; all must be refused, each array by its name. The damaged ones are the sound file with up to 20 bits
flipped, most of them within the structures of HDF5, or cut; what is not refused may differ in values alone. With
`model.sha256` every one is refused. The same counts of safetensors follow, the hostile ones by headers that lie about
an array. Prints the slowest and how much memory was taken at most beside that of the sound file. Two cores: 6 minutes.
"""

import hashlib
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import h5py
import jax
import numpy as np
from safetensors.numpy import save

from tltrain.config import default
from tltrain.errors import WeightsError
from tltrain.models import zoo
from tltrain.weights import hub_layout, keras_layout, keras_weights, safetensors_file

HOSTILE, DAMAGED = 100, 2000
MAX_SECONDS, MAX_MIB = 2, 300


def main():
    config = default()
    config.model.update(backbone="mobilenet_v2_0.35", weights="random")
    model = zoo.create(config, 1)
    layers = model.backbone.keras_layers()
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    rng, faults = random.Random(0), []
    slowest = 0.0

    def load(path, sha256=""):
        nonlocal slowest
        started = time.process_time()
        try:
            if path.suffix == ".safetensors":
                return safetensors_file.load(path, AsOfHub(), shapes, sha256)
            return keras_weights.load(path, layers, shapes, sha256)
        finally:
            slowest = max(slowest, time.process_time() - started)

    def refused(path, what, names=(), sha256=""):
        """Whether `path` is refused, as it should be."""
        try:
            loaded = load(path, sha256)
        except WeightsError as error:
            text = str(error)
            if not text.isprintable() or str(path) not in text or not any(name in text for name in names or ("",)):
                faults.append(f"{what}: refused by {text!r}")
            return True
        except BaseException as error:
            faults.append(f"{what}: {error!r}")
            return True
        leaves = jax.tree.leaves(loaded.variables)
        if not all(np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in leaves):
            faults.append(f"{what}: loaded with values that are none")
        return False

    with tempfile.TemporaryDirectory() as folder:
        sound, path = Path(folder) / "sound.h5", Path(folder) / "file.h5"
        write(sound, layers, shapes)
        load(sound)
        content = sound.read_bytes()
        before = peak()
        for i in range(HOSTILE):
            path.write_bytes(content)
            change = CHANGES[i % len(CHANGES)]
            with h5py.File(path, "r+") as file:
                names = rng.sample(sorted(arrays(file)), rng.randint(1, 3))
                for name in names:
                    change(file, name, rng)
            what = f"hostile {i}: {change.__name__} of {', '.join(names)}"
            layer = names[0].split("/")[0]
            if not refused(path, what, [layer, "levels", "at most"]):
                faults.append(f"{what}: loaded")
        print(f"{HOSTILE} hostile files: slowest {slowest:.2f} s, {peak() - before:.0f} MiB more than the sound file")
        of_hub = save({leaf.label: np.ones(leaf.shape[::-1], "f4") for leaf in hub_layout.leaves(AsOfHub(), shapes)})
        lying = path.with_suffix(".safetensors")
        for i in range(HOSTILE):
            what = lie(lying, of_hub, LIES[i % len(LIES)], rng)
            if not refused(lying, what):
                faults.append(f"{what}: loaded")
        print(f"{HOSTILE} hostile headers: slowest {slowest:.2f} s, {peak() - before:.0f} MiB more")
        for target, whole in ((path, content), (lying, of_hub)):
            pin, loaded = hashlib.sha256(whole).hexdigest(), 0
            for i in range(DAMAGED):
                damaged = bytearray(whole)
                damage(damaged, rng)
                target.write_bytes(damaged)
                loaded += not refused(target, f"damaged {i}")
                if not refused(target, f"damaged {i}, pinned", [hashlib.sha256(damaged).hexdigest()], pin):
                    faults.append(f"damaged {i}: loaded in spite of its pin")
            print(
                f"{DAMAGED} damaged {target.suffix}: {DAMAGED - loaded} refused, {loaded} differ in values alone; with "
                f"a pin all are refused; slowest {slowest:.2f} s, {peak() - before:.0f} MiB more"
            )
        if slowest > MAX_SECONDS or peak() - before > MAX_MIB:
            faults.append(f"more than {MAX_SECONDS} s or {MAX_MIB} MiB")
    print(f"{len(faults)} faults", *faults[:20], sep="\n")
    return bool(faults)


class AsOfHub:
    """The backbone as if its weights came from the Hub."""

    hub_prefixes = hub_unused = ()

    def hub_name(self, stage, layer):
        return f"{stage}.{layer}"


def lie(path, content, change, rng):
    """Writes a sound safetensors file but for what its header says of one array; returns what that is."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    name = rng.choice(sorted(header))
    header[name] |= change(header[name], rng)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
    return f"header of {name}: {header[name]}"


LIES = (
    lambda array, rng: {"shape": [*array["shape"], rng.choice([0, 1, 2, 2**40])]},
    lambda array, rng: {"shape": [side * 10**9 for side in array["shape"]]},
    lambda array, rng: {"dtype": rng.choice(["F64", "F16", "I32", "U8", "F8_E5M2", "C64", "O"])},
    lambda array, rng: {"data_offsets": [at + rng.choice([-4, 4, 2**40]) for at in array["data_offsets"]]},
    lambda array, rng: {"data_offsets": array["data_offsets"][::-1]},
)


def peak():
    """MiB that the process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path, layers, shapes):
    """The layout of Keras' published files, with plausible random values."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for leaf in keras_layout.leaves(layers, shapes):
            values = np.abs(rng.normal(1, 0.1, leaf.keras_shape)).astype(np.float32)
            file.create_dataset(f"{leaf.layer.name}/{leaf.layer.name}/{leaf.keys[0]}:0", data=values)


def arrays(file):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def of_other_shape(file, name, rng):
    shape = list(file[name].shape)
    side = rng.randrange(len(shape))
    shape[side] += rng.choice([-1, 1, 10**6]) if shape[side] > 1 else 1
    anew(file, name, tuple(shape))


def anew(file, name, shape=None, dtype="f4", **options):
    """Declares the array again, in another way, and stores nothing."""
    shape = shape or file[name].shape
    del file[name]
    chunks = tuple(min(side, 32) for side in shape)
    return file.create_dataset(name, shape, dtype, chunks=chunks, **options)


def of_nothing(file, name, rng):
    anew(file, name, compression=rng.choice([None, "gzip"]))


def of_other_type(file, name, rng):
    dtype = rng.choice(["i4", "u1", "S5", "c8", h5py.string_dtype(), [("a", "f4"), ("b", "i2")], h5py.ref_dtype])
    anew(file, name, dtype=dtype)


def growing(file, name, rng):
    shape = file[name].shape
    anew(file, name, maxshape=tuple(rng.choice([None, side + 1]) for side in shape))[...] = 1


def by_other_filter(file, name, rng):
    options = rng.choice([{"compression": "lzf"}, {"scaleoffset": rng.randint(1, 5)}])
    anew(file, name, **options)[...] = 1


def with_value(file, name, rng):
    values = file[name][()]
    values.flat[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -2e6])
    file[name][...] = values


def linked(file, name, rng):
    del file[name]
    place = rng.choice(["/", "/Conv1", name, "/nowhere"])
    file[name] = h5py.SoftLink(place) if rng.random() < 0.5 else h5py.ExternalLink(rng.choice(["x.h5", "/etc"]), place)


def twice(file, name, rng):
    place, _, suffix = name.rpartition(":")
    file.copy(name, rng.choice([place, f"{place}:{int(suffix) + 1}", f"{rng.randrange(9)}/{name}"]))


def outside(file, name, rng):
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, "f4", external=[("/dev/zero", rng.randrange(99), h5py.h5f.UNLIMITED)])


def gone(file, name, rng):
    del file[name.rpartition("/")[0] if rng.random() < 0.5 else name]


CHANGES = (
    of_other_shape,
    of_nothing,
    of_other_type,
    growing,
    by_other_filter,
    with_value,
    linked,
    twice,
    outside,
    gone,
)


def damage(content, rng):
    """Cuts `content` or flips bits: in one of the blocks of its structures, or anywhere."""
    if rng.random() < 0.1:
        del content[rng.randrange(len(content)) :]
        return
    blocks = [at for magic in (b"TREE", b"HEAP", b"SNOD", b"\x89HDF") for at in find(content, magic)]
    start = rng.choice(blocks or [0]) if rng.random() < 0.8 else rng.randrange(len(content))
    for _ in range(rng.randint(1, 20)):
        at = min(start + rng.randrange(300), len(content) - 1)
        content[at] ^= 1 << rng.randrange(8)


def find(content, magic):
    at = content.find(magic)
    while at >= 0:
        yield at
        at = content.find(magic, at + 1)


if __name__ == "__main__":
    sys.exit(main())
