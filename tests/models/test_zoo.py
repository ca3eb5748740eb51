"""Every backbone is the model of that name in Keras, and keeps the contract of stages and of freezing."""

import functools
import inspect
import itertools
import runpy
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import pytest
import test_vision
from conftest import QUICKLY, graded
from PIL import Image
from references import (
    FAMILIES,
    FIRST,
    MAKERS,
    PREPROCESS,
    assert_close,
    assign,
    base,
    draw,
    middle_of,
    pooled,
    shapes_of,
    variables_of,
)
from test_adapters import moved
from test_freeze import batch_of, same, step_of

from tltrain import config as config_lib
from tltrain.data.kinds.images import Images
from tltrain.errors import ConfigError
from tltrain.experiment import sweeping
from tltrain.models import (
    adapters,
    clip,
    convnext,
    convolution,
    densenet,
    dinov2,
    efficientnet,
    efficientnet_v2,
    inception_resnet_v2,
    inception_v3,
    layers,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    resnet_v2,
    siglip,
    vgg,
    vit,
    xception,
    zoo,
)
from tltrain.models.classifier import Classifier, frozen_constants, run_frozen
from tltrain.models.image_backbone import scale_pixels
from tltrain.runtime.process import Process

jit = functools.partial(jax.jit, compiler_options=QUICKLY)
BACKBONES = dict(zoo.BACKBONES)  # before configs of other tests add theirs


@functools.cache
def golden(name):
    family = next(key for key, (_, makers) in FAMILIES.items() if name in makers)
    with np.load(Path(__file__).parents[1] / "golden" / f"{family}.npz") as file:
        return {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}


make = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make.py"))


SLOW = ("nasnet", "inception_resnet_v2")  # to compile
QUICK_FIRST = [name for name in FIRST if not name.startswith(SLOW)]
# parameters without top and with that of 1000 classes, statistics included, as Keras counts
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARAMETERS = {
    "vgg16": (14_714_688, 138_357_544),
    "vgg19": (20_024_384, 143_667_240),
    "resnet50": (23_587_712, 25_636_712),
    "resnet101": (42_658_176, 44_707_176),
    "resnet152": (58_370_944, 60_419_944),
    "resnet50_v2": (23_564_800, 25_613_800),
    "resnet101_v2": (42_626_560, 44_675_560),
    "resnet152_v2": (58_331_648, 60_380_648),
    "inception_v3": (21_802_784, 23_851_784),
    "inception_resnet_v2": (54_336_736, 55_873_736),
    "xception": (20_861_480, 22_910_480),
    "mobilenet_v1": (3_228_864, 4_253_864),
    "mobilenet_v2": (2_257_984, 3_538_984),
    "mobilenet_v2_0.35": (410_208, 1_691_208),
    "mobilenet_v2_0.5": (706_224, 1_987_224),
    "mobilenet_v2_0.75": (1_382_064, 2_663_064),
    "mobilenet_v2_1.3": (3_766_048, 5_431_048),
    "mobilenet_v2_1.4": (4_363_712, 6_156_712),
    "mobilenet_v3_small": (939_120, 2_554_968),
    "mobilenet_v3_large": (2_996_352, 5_507_432),
    "densenet121": (7_037_504, 8_062_504),
    "densenet169": (12_642_880, 14_307_880),
    "densenet201": (18_321_984, 20_242_984),
    "nasnet_mobile": (4_269_716, 5_326_716),
    "nasnet_large": (84_916_818, 88_949_818),
    "efficientnet_b0": (4_049_571, 5_330_571),
    "efficientnet_b1": (6_575_239, 7_856_239),
    "efficientnet_b2": (7_768_569, 9_177_569),
    "efficientnet_b3": (10_783_535, 12_320_535),
    "efficientnet_b4": (17_673_823, 19_466_823),
    "efficientnet_b5": (28_513_527, 30_562_527),
    "efficientnet_b6": (40_960_143, 43_265_143),
    "efficientnet_b7": (64_097_687, 66_658_687),
    "efficientnet_lite0": (3_413_024, 4_694_024),
    "efficientnet_lite1": (4_189_344, 5_470_344),
    "efficientnet_lite2": (4_869_168, 6_150_168),
    "efficientnet_lite3": (6_992_768, 8_273_768),
    "efficientnet_lite4": (11_837_936, 13_118_936),
    "efficientnet_v2_b0": (5_919_312, 7_200_312),
    "efficientnet_v2_b1": (6_931_124, 8_212_124),
    "efficientnet_v2_b2": (8_769_374, 10_178_374),
    "efficientnet_v2_b3": (12_930_622, 14_467_622),
    "efficientnet_v2_s": (20_331_360, 21_612_360),
    "efficientnet_v2_m": (53_150_388, 54_431_388),
    "efficientnet_v2_l": (117_746_848, 119_027_848),
    "convnext_tiny": (27_820_128, 28_589_128),
    "convnext_small": (49_454_688, 50_223_688),
    "convnext_base": (87_566_464, 88_591_464),
    "convnext_large": (196_230_336, 197_767_336),
    "convnext_xlarge": (348_147_968, 350_196_968),
}
# widths of the dense layers of a top of several: that of VGG is over 7x7 positions
TOPS = dict.fromkeys(("vgg16", "vgg19"), (7 * 7 * 512, 4096, 4096, 1000))
TOPS |= {"mobilenet_v3_small": (576, 1024, 1000), "mobilenet_v3_large": (960, 1280, 1000)}


@pytest.mark.parametrize("name", graded(PARAMETERS, [*QUICK_FIRST, "vgg19", "mobilenet_v2_0.35", "mobilenet_v2_1.4"]))
def test_parameters_layers_in_their_order_and_features_are_those_of_keras(name):
    backbone = zoo.BACKBONES[name]()
    shapes, features = shapes_of(backbone), features_of(name)
    without = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    top = TOPS.get(name, (features.shape[1], 1000))
    head = sum(wide * narrow + narrow for wide, narrow in itertools.pairwise(top))
    if name.startswith("efficientnet_b"):
        without += 1  # the number of images that its normalisation has seen
    assert (without, without + head) == PARAMETERS[name]
    if name in MAKERS:  # MobileNetV2 of other widths has the names of that of width 1
        assert make["fingerprint_of_backbone"](backbone.keras_layers(), shapes) == int(golden(name)["layers"])
        assert deviation(name, features) < 1e-4


def test_every_network_of_keras_applications_is_in_the_zoo():
    makers = [found for found in vars(keras.applications).values() if callable(found)]
    networks = {maker.__name__ for maker in makers if "weights" in inspect.signature(maker).parameters}
    assert {getattr(maker, "func", maker).__name__ for maker in MAKERS.values()} == networks
    assert MAKERS.keys() <= zoo.BACKBONES.keys()


@pytest.mark.full
@pytest.mark.parametrize("name", dict.fromkeys((*FIRST, *TOPS)))  # layers of the others are those of a fingerprint
def test_the_table_of_parameters_is_that_of_keras(name):
    size = zoo.BACKBONES[name]().input_size  # without one, Keras builds another NASNetLarge
    without = MAKERS[name](weights=None, include_top=False, input_shape=(*size, 3)).count_params()
    assert (without, MAKERS[name](weights=None).count_params()) == PARAMETERS[name]


def photos(size):
    """A photo `[1, H, W, 3]` in colours: another real image of textile in each channel."""
    folder = metadata.distribution("conformal-clip-data").locate_file("conformal_clip_data/data/textile_images")
    paths = [sorted((Path(folder) / "simulated" / name).iterdir())[7] for name in ("global", "local", "nominal")]
    channels = [np.asarray(Image.open(path).convert("L").resize(size[::-1])) for path in paths]
    return np.stack(channels, axis=-1)[None]


SIZES = {"own": None, "oblong": (97, 112)}
# others than the first of a family have golden features, and differ in depth and width alone, but for these
COMPARED = [(name, size) for name in FIRST if name != "mobilenet_v2" for size in SIZES]  # which has a file of its own
COMPARED += [(name, "oblong") for name in ("mobilenet_v3_large", "efficientnet_v2_s")]


@pytest.mark.full
@pytest.mark.parametrize(("name", "size"), COMPARED)
def test_a_middle_stage_pooled_features_and_logits_equal_keras(name, size):
    backbone = zoo.BACKBONES[name]()
    size = SIZES[size] or backbone.input_size
    reference = base(name, size)
    stage, middle = middle_of(name, reference)
    wanted, dense = pooled(reference.output), keras.layers.Dense(1000)
    reference = keras.Model(reference.input, [middle.output, wanted, dense(wanted)])
    head = {"kernel": draw("Dense", 0, 0, "kernel", dense.kernel.shape), "bias": draw("Dense", 0, 1, "bias", (1000,))}
    dense.set_weights(list(head.values()))
    model = Classifier(backbone, 1000, 0.0)
    variables = {kind: {"backbone": tree} for kind, tree in variables_of(backbone).items()}
    variables["params"]["head"] = head
    cut, last = backbone.stages.index(stage) + 1, len(backbone.stages)

    @jit
    def run(variables, images):
        if size == backbone.input_size:  # as frozen stages are run
            block = run_frozen(model, variables, images, 0, cut)
            features = run_frozen(model, variables, block, cut, last)
        else:  # as trainable stages are
            block = model.apply(variables, images, 0, cut, method="run")
            features = model.backbone.pool(model.apply(variables, block, cut, last, method="run"))
        end = block["x"] if name.startswith("nasnet") else block  # whose stages hand on also what was before
        return end, features, model.apply(variables, features, last)

    images = photos(size)
    theirs = reference(PREPROCESS[name](images.astype(np.float32)), training=False)
    for ours, wanted in zip(run(variables, images), theirs, strict=True):
        assert_close(ours, wanted)


LITE = {  # channels and blocks of each group, as published
    "efficientnet_lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_lite4": ((24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1)),
}


@pytest.mark.full
@pytest.mark.parametrize("name", LITE)
def test_features_and_parameters_of_efficientnet_lite_equal_keras_hub(name):
    channels, counts = LITE[name]
    reference = keras_hub.models.EfficientNetBackbone(
        name=name,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=counts,
        stackwise_input_filters=(32, *channels[:-1]),
        stackwise_output_filters=channels,
        stackwise_expansion_ratios=[1, *[6] * 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_squeeze_and_excite_ratios=[0] * 7,
        stackwise_block_types=["v1"] * 7,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        activation="relu6",
        batch_norm_epsilon=1e-3,
        input_shape=(
            97,
            97,
            3,
        ),  # its padding is symmetric, which is right where no map that is halved has an even side
    )
    backbone, images = zoo.BACKBONES[name](), photos((97, 97))
    scaled = scale_pixels(images, backbone.pixels, jnp.float32)
    features = jit(lambda variables, x: backbone.pool(backbone.apply(variables, x)))(variables_of(backbone), scaled)
    assert_close(features, pooled(assign(reference)(images.astype(np.float32) / 127.5 - 1, training=False)))
    assert reference.count_params() == PARAMETERS[name][0]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_v2_b0", "efficientnet_v2_s"])
def test_pixels_are_scaled_as_layers_of_keras_do(name):
    reference = MAKERS[name](weights=None, include_top=False, input_shape=(32, 32, 3))
    first = next(layer for layer in reference.layers if isinstance(layer, keras.layers.Conv2D))
    images = make["images"](32)
    seen = keras.Model(reference.input, first.input)(images.astype(np.float32))
    ours = scale_pixels(images, zoo.BACKBONES[name]().pixels, jnp.float32)
    np.testing.assert_allclose(ours, seen, atol=1e-6)


def features_of(name, variables=None, images=None, pixels=None):
    """Those of the golden images, pooled."""
    backbone = zoo.BACKBONES[name]()
    variables = variables_of(backbone) if variables is None else variables
    images = make["images"](backbone.min_size) if images is None else images
    scaled = scale_pixels(images, pixels or backbone.pixels, jnp.float32)
    return np.asarray(jit(lambda variables, x: backbone.pool(backbone.apply(variables, x)))(variables, scaled))


def deviation(name, features):
    """The largest difference of features from the golden ones, over the largest of these."""
    wanted = golden(name)["features"]
    return np.abs(features[0, :: make["EVERY"]] - wanted).max() / np.abs(wanted).max()


def exchange(tree, first, second):
    """A copy of nested dicts in which the leaves at two paths have changed places."""
    copy = jax.tree.map(lambda leaf: leaf, tree)
    at = [functools.reduce(lambda node, key: node[key], path[:-1], copy) for path in (first, second)]
    at[0][first[-1]], at[1][second[-1]] = at[1][second[-1]], at[0][first[-1]]
    return copy


def exchanged(*paths, name="mobilenet_v1"):
    return lambda _: {"variables": exchange(variables_of(zoo.BACKBONES[name]()), *paths)}


def epsilon_of_resnet(patch):
    patch.setattr(mobilenet_v1, "EPSILON", resnet.EPSILON)


def symmetric_padding(patch):
    patch.setattr(convolution, "same_padding", lambda size, kernel, strides: [(k // 2, k // 2) for k in kernel])


def counted_padding(patch):
    patch.setattr(inception_v3, "avg_pool", inception_v3.nn.avg_pool)


NORM = ("conv_pw_3", "conv_pw_bn")
MUTATIONS = {
    "epsilon": ("mobilenet_v1", epsilon_of_resnet),
    "padding": ("mobilenet_v1", symmetric_padding),
    "RGB for BGR": ("vgg16", lambda _: {"images": make["images"](32)[..., ::-1]}),
    "pixels": ("mobilenet_v1", lambda _: {"pixels": "unit"}),
    "kernels of one shape": (
        "mobilenet_v1",
        exchanged(("params", "conv_pw_8", "conv_pw", "kernel"), ("params", "conv_pw_9", "conv_pw", "kernel")),
    ),
    "kernels of one shape, far up": (
        "efficientnet_b0",
        exchanged(*(("params", f"block6{i}", "project_conv", "kernel") for i in "cd"), name="efficientnet_b0"),
    ),
    "gamma and beta": ("mobilenet_v1", exchanged(("params", *NORM, "scale"), ("params", *NORM, "bias"))),
    "mean and beta": ("mobilenet_v1", exchanged(("params", *NORM, "bias"), ("batch_stats", *NORM, "mean"))),
    "padding in averages": ("inception_v3", counted_padding),
}


@pytest.mark.full
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught(mutation, monkeypatch):
    name, mutate = MUTATIONS[mutation]
    assert deviation(name, features_of(name, **(mutate(monkeypatch) or {}))) > 1e-3


WITHOUT_STATISTICS = ("vgg16", "convnext_tiny")


@pytest.mark.parametrize("name", graded([name for name in FIRST if name not in WITHOUT_STATISTICS], ["mobilenet_v1"]))
def test_statistics_move_in_training_as_in_keras(name):
    backbone = zoo.BACKBONES[name]()
    size = (backbone.min_size,) * 2
    reference, variables, images = base(name, size), variables_of(backbone), photos(size)
    first = next(layer for layer in reference.layers if isinstance(layer, keras.layers.BatchNormalization))
    keras.Model(reference.input, first.output)(PREPROCESS[name](images.astype(np.float32)), training=True)
    scaled = scale_pixels(images, backbone.pixels, jnp.float32)
    _, moved = jit(lambda v, x: backbone.apply(v, x, True, 0, 2, mutable=["batch_stats"]))(variables, scaled)
    path = next(layer.path for layer in backbone.keras_layers() if layer.class_name == "BatchNormalization")
    ours = moved["batch_stats"][path[0]][path[1]]
    assert_close(ours["mean"], first.moving_mean)
    assert_close(ours["var"], first.moving_variance)


def test_the_published_deviation_of_efficientnet_is_not_taken_for_a_variance():
    backbone = zoo.BACKBONES["efficientnet_b0"](groups=())
    variables = variables_of(backbone)
    normal = {"mean": np.asarray([0.485, 0.456, 0.406]), "var": np.asarray([0.229, 0.224, 0.225])}
    variables["batch_stats"]["stem"]["normalization"] = jax.tree.map(np.float32, normal)
    images = photos((32, 32)).astype(np.float32)
    outside = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    plain = variables | {"batch_stats": variables["batch_stats"] | {}}
    plain["batch_stats"]["stem"] = variables["batch_stats"]["stem"] | {"normalization": outside}
    normalized = (images / 255 - normal["mean"]) / normal["var"] * 255
    assert_close(backbone.apply(variables, images), backbone.apply(plain, normalized.astype(np.float32)))


MIXED = inception_v3.BLOCKS
TOKENS = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "grid": 3}
TINY = {
    "vgg": lambda: vgg.VGG(num_convs=(1, 1, 2), widths=(8, 8, 8)),
    "resnet": lambda: resnet.ResNet(depths=(1, 2), widths=(8, 8)),
    "resnet_v2": lambda: resnet_v2.ResNetV2(depths=(2, 1), widths=(8, 8)),
    "inception_v3": lambda: inception_v3.InceptionV3(width=0.05, blocks=(MIXED[0], MIXED[3])),
    "inception_resnet_v2": lambda: inception_resnet_v2.InceptionResNetV2(width=0.05, depths=(1, 1, 1)),
    "xception": lambda: xception.Xception(widths=(8, 16), num_middle=0),
    "mobilenet_v1": lambda: mobilenet_v1.MobileNetV1(alpha=0.25, blocks=mobilenet_v1.BLOCKS[:3]),
    "mobilenet_v2": lambda: mobilenet_v2.MobileNetV2(alpha=0.35, groups=((16, 1, 1, 1), (24, 2, 2, 6))),
    "mobilenet_v3": lambda: mobilenet_v3.MobileNetV3(blocks=mobilenet_v3.SMALL[:2]),
    "densenet": lambda: densenet.DenseNet(depths=(2, 1), growth=4),
    "nasnet": lambda: nasnet.NASNet(features=8, stem_features=4, num_blocks=1),
    "efficientnet": lambda: efficientnet.EfficientNet(width=0.25, groups=efficientnet.GROUPS[1:2]),
    "efficientnet_lite": lambda: efficientnet.EfficientNetLite(width=0.25, groups=efficientnet.GROUPS[:2]),
    "vit": lambda: vit.ViT(**TOKENS, patch_size=16),
    "dinov2": lambda: dinov2.DINOv2(**TOKENS, gated=True, registers=2),
    "clip": lambda: clip.CLIP(**TOKENS, patch_size=16),
    "siglip": lambda: siglip.SigLIP(**TOKENS),
    "efficientnet_v2": lambda: efficientnet_v2.EfficientNetV2(width=0.25, groups=((1, 16, 1, 1), (2, 32, 2, 4))),
    "convnext": lambda: convnext.ConvNeXt(depths=(1, 1), widths=(8, 16)),
}


OF_TOKENS = ("vit", "dinov2", "clip", "siglip")


@functools.cache
def tiny(family):
    backbone = TINY[family]()
    model = Classifier(backbone, 3, 0.2)
    variables = zoo.init(model, 0, None)
    return model, jax.tree.map_with_path(lambda path, leaf: heard(path[-1].key, leaf), variables)


def heard(name, leaf):
    """`leaf`, of a scale of what blocks add 1 in place of what next to nothing is heard of."""
    return np.ones_like(leaf) if name == "gamma" else leaf


@pytest.mark.parametrize("family", graded(TINY, [family for family in TINY if family not in SLOW]))
def test_stages_run_in_part_as_they_run_in_one(family):
    model, variables = tiny(family)
    stages, images = model.backbone.stages, batch_of(size=model.backbone.min_size)["inputs"]
    middle, last = len(stages) // 2, len(stages)
    assert set(variables["params"]["backbone"]) == set(stages)
    whole = jit(lambda v, x: run_frozen(model, v, x, 0, last))(variables, images)
    part = jit(lambda v, x: model.apply(v, x, 0, middle, method="run"))(variables, images)
    rest = jit(lambda v, x: model.backbone.pool(model.apply(v, x, middle, last, method="run")))(variables, part)
    assert_close(rest, whole)
    rounded = model.clone(backbone=model.backbone.clone(dtype=jnp.dtype("bfloat16")))
    for stop in (middle, last):
        result = jax.eval_shape(lambda v, x, stop=stop: rounded.apply(v, x, 0, stop, method="run"), variables, images)
        ndim = 3 if family in OF_TOKENS else 4
        assert all(leaf.dtype == jnp.bfloat16 and leaf.ndim == ndim for leaf in jax.tree.leaves(result))


QUICK_WITHOUT = (
    *SLOW,
    "mobilenet_v2",
    "mobilenet_v3",
    "xception",
    "efficientnet_lite",
    "efficientnet_v2",
    "vit",
    "clip",
)
CUTS = [(family, cut) for family in TINY for cut in (None, "middle") if family not in SLOW or cut == "middle"]
CUTS += [(family, "all") for family in ("densenet", "mobilenet_v2", "efficientnet", "dinov2")]
HALVES = [(family, "middle") for family in TINY if family not in QUICK_WITHOUT]


WITH_FACTORS = [(family, False) for family in TINY if family not in ("vgg", *SLOW)]  # VGG is all 3x3
WITH_FACTORS += [(family, True) for family in ("mobilenet_v1", "mobilenet_v2", "resnet_v2", "efficientnet")]


@pytest.mark.parametrize(
    ("family", "train"), graded(WITH_FACTORS, [("mobilenet_v2", True), ("convnext", False), ("dinov2", False)])
)
def test_factors_give_what_the_merged_kernels_give(family, train):
    model, variables = tiny(family)
    lora = adapters.Lora(2, 2.0, ("all",), seed=0)
    params = moved(adapters.with_factors(variables["params"], model.backbone.stages, lora))
    images = batch_of(size=model.backbone.min_size)["inputs"]

    @jit
    def logits(params):
        return model.apply(variables | {"params": params}, images, 0, train, mutable=["batch_stats"])[0]

    with adapters.applied(lora):
        beside = logits(params)
    merged = adapters.merged(params, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])
    assert_close(beside, logits(merged))
    assert np.abs(beside - logits(variables["params"])).max() > 1e-2 * np.abs(beside).max()


ALIKE = {
    "vit": lambda count: vit.ViT(**TOKENS | {"num_layers": count + 1}, patch_size=16),
    "dinov2": lambda count: dinov2.DINOv2(**TOKENS | {"num_layers": count}, gated=True, pooling="mean"),
    "convnext": lambda count: convnext.ConvNeXt(depths=(count, 1), widths=(8, 16)),
}


@pytest.mark.parametrize("family", graded(ALIKE, ["dinov2"]))
def test_stages_that_are_alike_are_compiled_once_as_a_loop_and_give_the_same_gradient(family):
    def made(count, **options):
        return Classifier(ALIKE[family](count).clone(**options), 3, 0.0)

    model, lora = made(5), adapters.Lora(2, 2.0, ("all",), seed=0)
    variables = zoo.init(model, 0, None)["params"]
    variables = jax.tree.map_with_path(lambda path, leaf: heard(path[-1].key, leaf), variables)
    params = moved(adapters.with_factors(variables, model.backbone.stages, lora))
    images = batch_of(size=model.backbone.min_size)["inputs"]

    def program(model, params):
        def loss(params):
            with adapters.applied(lora):
                return (model.apply({"params": params}, images) ** 2).sum()

        return jit(jax.grad(loss)).lower(params)

    plain = program(model, params).compile()
    kept, largest = {}, max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain(params)))
    for remat in (False, True):
        looped = program(made(5, scan=True, remat=remat), params).compile()
        kept[remat] = looped.memory_analysis().temp_size_in_bytes
        for a, b in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(looped(params)), strict=True):
            assert np.abs(a - b).max() < max(1e-4 * np.abs(a).max(), 1e-6 * largest)  # that of a key's bias is zero
    assert kept[True] < 0.8 * kept[False]
    products = [
        program(model, zoo.shapes(model)["params"]).as_text().count("dot_general")
        for model in (made(5, scan=True), made(8, scan=True), made(3), made(3, scan=True))
    ]
    assert products[0] == products[1] and products[2] == products[3]  # a loop of three does not pay


@pytest.mark.parametrize(("family", "freeze_until"), graded(CUTS, HALVES))
def test_frozen_stages_stay_bitwise_and_the_others_move(family, freeze_until):
    model, variables = tiny(family)
    stages = model.backbone.stages
    middle = len(stages) // 2
    freeze_until = stages[middle - 1] if freeze_until == "middle" else freeze_until
    step, state, plan = step_of(freeze_until, made=tiny(family))
    batch = batch_of(size=model.backbone.min_size)
    after, (_, norm) = jit(step)(state, batch)
    for i, stage in enumerate(stages):
        for kind in ("params", "batch_stats"):
            before, now = (getattr(s, kind)["backbone"].get(stage, {}) for s in (state, after))
            kept = [
                same(a, b)
                for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(now), strict=True)
                if path[0].key != "normalization"  # of pixels: a constant
            ]
            assert all(kept) if i < plan.cut else not any(kept) or (kind == "params" and not all(kept)), (stage, kind)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * sum(
        leaf.size
        for leaf, label in zip(jax.tree.leaves(state.params), jax.tree.leaves(plan.labels(state.params)), strict=True)
        if label == "trainable"
    )
    if 0 < plan.cut < len(stages):
        stored = jit(lambda v, x: run_frozen(model, v, x, 0, plan.cut))(variables, batch["inputs"])
        cached_step, state, _ = step_of(freeze_until, start=plan.cut, made=tiny(family))
        cached, (_, cached_norm) = jit(cached_step)(state, batch | {"inputs": stored})
        np.testing.assert_allclose(float(norm), float(cached_norm), rtol=1e-3)
        for a, b in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(cached.batch_stats), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.optimized
def test_constants_of_frozen_stages_give_the_same_bits_and_kernels_are_transformed_on_cpu_alone():
    backbone = vgg.VGG(num_convs=(1, 2), widths=(64, 64))
    model = Classifier(backbone, 3, 0.2)
    variables, images = zoo.init(model, 0, None), batch_of(size=32)["inputs"]

    def constants_of(variables):
        return frozen_constants(model, variables, images, 0, 2)

    def kernel_shapes(variables):
        stages = jax.eval_shape(lambda v: constants_of(v), variables)["constants"]["backbone"]  # traced each time
        return [stages[stage][conv]["kernel"].shape[:2] for stage, conv in (("block1", "conv1"), ("block2", "conv2"))]

    constants = variables | jax.jit(constants_of)(variables)
    run = jax.jit(lambda v, x: run_frozen(model, v, x, 0, 2), compiler_options=layers.forward_options())
    features = run(variables, images)
    np.testing.assert_array_equal(run(constants, images), features)
    np.testing.assert_array_equal(run(variables, images[::-1]), features[::-1])
    assert kernel_shapes(variables) == [(3, 3), (4, 4)]
    with convolution.portable():
        assert kernel_shapes(variables) == [(3, 3), (3, 3)]
    plain = jit(lambda v, x: model.backbone.pool(model.apply(v, x, 0, 2, method="run")))(variables, images)
    assert not np.array_equal(plain, features)
    np.testing.assert_allclose(features, plain, atol=3e-6 * np.abs(plain).max())


@pytest.mark.optimized
@pytest.mark.parametrize("family", graded(["vit", "dinov2", "clip", "siglip", "convnext"], ["vit", "convnext"]))
def test_frozen_stages_give_the_same_bits_of_halves_in_one_program_or_in_two(family):
    """Without rounding in between, as XLA would have it, the two would differ; of other families they do not."""
    model, variables = tiny(family)
    model = model.clone(backbone=model.backbone.clone(dtype=jnp.bfloat16))
    images, last = batch_of(size=model.backbone.min_size)["inputs"], len(model.backbone.stages)

    def run(x, start, stop):
        made = jax.jit(
            lambda x: run_frozen(model, variables, x, start, stop), compiler_options=layers.forward_options()
        )
        return made(x)

    whole = run(images, 0, last)
    np.testing.assert_array_equal(run(run(images, 0, last // 2), last // 2, last), whole)


def test_images_have_the_size_of_the_backbone_where_the_config_has_none_and_are_never_too_small():
    config = config_lib.default()
    config.model.backbone = "xception"
    assert zoo.resolved(config).data.image_size == (299, 299) and config.data.image_size is None
    config.data.image_size = (320, 70)
    with pytest.raises(ConfigError, match=r"image_size = \(320, 70\), allowed with xception: at least 71 pixels"):
        zoo.resolved(config)


def test_the_arms_of_the_comparison_without_weights_are_one_of_each_family(tmp_path):
    file = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "backbones.py"))
    first, *others = sweeping.members(file["get_config"](), list(file["sweep"]()), 1, tmp_path)
    assert first.arm == "backbone=mobilenet_v2" and first.config.model.weights.endswith(".h5")
    names = [*FIRST, "vit_small_16", "dinov2_small", "clip_base_32", "siglip_base_16"]
    assert sorted(m.arm for m in others) == sorted(f"backbone={name},weights=random" for name in names)
    assert all(m.config.data.image_size == zoo.BACKBONES[m.config.model.backbone]().input_size for m in others)


@pytest.mark.full
def test_two_arms_of_the_comparison_of_backbones_run(images, tmp_path, capsys):
    file = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "backbones.py"))
    config, arms = file["get_config"](), list(file["sweep"]())
    config.data.update(source=f"folder:{images}", splits=("train[:75%]", "train[75%:]"), image_size=(32, 32))
    config.update(batch_size=8)
    config.model.weights = "random"
    config.features.dir = str(tmp_path / "features")
    config.probe.epochs = 1
    chosen = arms[:2]
    assert sweeping.run(sweeping.members(config, chosen, 1, tmp_path), tmp_path, Process()) == 0
    assert "backbone=mobilenet_v2, seed 0: val accuracy" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize(("backbone", "dtype"), [("mobilenet_v2", "float32"), ("vit_small_16", "bfloat16")])
def test_the_steps_that_are_timed_on_an_accelerator_run(backbone, dtype):
    file = runpy.run_path(str(BENCHMARKS / "accelerator.py"))
    cut, dtypes = file["BACKBONES"][backbone]
    assert dtype in dtypes
    for name, step, limit in file["tltrain_steps"](backbone, cut, dtype, 2):
        step()
        assert limit > 0, name


@pytest.mark.full
@pytest.mark.parametrize(("backbone", "side"), [("vgg16", 32), ("vit_small_16", 224)])
def test_the_forward_pass_that_is_timed_beside_keras_runs(backbone, side):
    shape = (2, side, side, 3)
    forward, dtype = runpy.run_path(str(BENCHMARKS / "peers" / "zoo_forward.py"))["tltrain"](backbone, shape)
    forward([np.zeros(shape, dtype)])


def test_the_table_beside_keras_has_rows_of_what_keras_does_not_have(capsys):
    file = runpy.run_path(str(BENCHMARKS / "zoo.py"))
    runs = [{"images_per_second": dict.fromkeys(file["BATCH_SIZES"], 20.0)}]
    file["show"]({"vit_small_16": {"tltrain": runs}, "mobilenet_v2": dict.fromkeys(file["LIBRARIES"], runs)})
    head, rule, vit, _, mobilenet, _ = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == vit.count("|") == mobilenet.count("|")
    assert vit.startswith("| vit_small_16 | 21.7 | ") and vit.endswith(" | 8 |  |  |  |  | 20.0 |  |")
    assert mobilenet.endswith(" | 20.0 | 20.0 | 1.00 |")


OF_ANY_SIZE = ("vit", "dinov2", "clip", "siglip")


def test_the_table_of_the_readme_is_that_of_the_zoo():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| `")]
    said = {}
    for names, parameters, sizes, *_ in rows:
        names, parameters, sizes = (cell.replace("`", "").strip().split("<br>") for cell in (names, parameters, sizes))
        sizes = sizes * len(names) if len(sizes) == 1 else sizes
        said |= {name: found for name, *found in zip(names, parameters, sizes, strict=True)}
    made = {name: make() for name, make in BACKBONES.items()}
    made = {name: backbone for name, backbone in made.items() if backbone.kind is Images and name not in OF_ANY_SIZE}
    assert said.keys() == made.keys()
    counts = test_vision.PARAMETERS | {name: without for name, (without, _) in PARAMETERS.items()}
    for name, backbone in made.items():
        assert said[name] == [f"{counts[name] / 1e6:.1f}", str(backbone.input_size[0])], name
