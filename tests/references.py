"""Keras' model of each backbone, and weights for both that follow from the place of an array alone."""

import collections
import functools
import zlib

import jax
import keras
import numpy as np

from tltrain.exports.filling import layers_of
from tltrain.weights import keras_layout, keras_weights, variables

APPS = keras.applications
FAMILIES = {
    "vgg": (APPS.vgg16, {"vgg16": APPS.VGG16, "vgg19": APPS.VGG19}),
    "resnet": (
        APPS.resnet,
        {"resnet50": APPS.ResNet50, "resnet101": APPS.ResNet101, "resnet152": APPS.ResNet152},
    ),
    "resnet_v2": (
        APPS.resnet_v2,
        {"resnet50_v2": APPS.ResNet50V2, "resnet101_v2": APPS.ResNet101V2, "resnet152_v2": APPS.ResNet152V2},
    ),
    "inception_v3": (APPS.inception_v3, {"inception_v3": APPS.InceptionV3}),
    "inception_resnet_v2": (APPS.inception_resnet_v2, {"inception_resnet_v2": APPS.InceptionResNetV2}),
    "xception": (APPS.xception, {"xception": APPS.Xception}),
    "mobilenet_v1": (APPS.mobilenet, {"mobilenet_v1": APPS.MobileNet}),
    "mobilenet_v2": (APPS.mobilenet_v2, {"mobilenet_v2": APPS.MobileNetV2}),
    "mobilenet_v3": (
        APPS.mobilenet_v3,
        {"mobilenet_v3_small": APPS.MobileNetV3Small, "mobilenet_v3_large": APPS.MobileNetV3Large},
    ),
    "densenet": (
        APPS.densenet,
        {"densenet121": APPS.DenseNet121, "densenet169": APPS.DenseNet169, "densenet201": APPS.DenseNet201},
    ),
    "nasnet": (APPS.nasnet, {"nasnet_mobile": APPS.NASNetMobile, "nasnet_large": APPS.NASNetLarge}),
    "efficientnet": (
        APPS.efficientnet,
        {f"efficientnet_b{i}": getattr(APPS, f"EfficientNetB{i}") for i in range(8)},
    ),
    "efficientnet_v2": (
        APPS.efficientnet_v2,
        {f"efficientnet_v2_{n.lower()}": getattr(APPS, f"EfficientNetV2{n}") for n in "B0 B1 B2 B3 S M L".split()},
    ),
    "convnext": (  # whose last normalisation is one of the average
        APPS.convnext,
        {
            f"convnext_{size.lower()}": functools.partial(getattr(APPS, f"ConvNeXt{size}"), pooling="avg")
            for size in ("Tiny", "Small", "Base", "Large", "XLarge")
        },
    ),
}
PREPROCESS = {name: module.preprocess_input for module, makers in FAMILIES.values() for name in makers}
MAKERS = {name: maker for _, makers in FAMILIES.values() for name, maker in makers.items()}
FIRST = [next(iter(makers)) for _, makers in FAMILIES.values()]  # the smallest of each family


def draw(class_name, number, index, name, shape, gain=1.0):
    """Array `index` of the layer that is `number` of its class in `model.layers`, in Keras' shape.

    Kernels of sane size, times `gain` as gamma is; parameters and statistics of norms far from one and zero, and layer
    scales too, lest what they scale should not show.
    """
    rng = np.random.default_rng(zlib.crc32(f"{class_name} {number} {index}".encode()))
    if class_name == "LayerScale" or name in ("gamma", "moving_variance", "variance"):
        value = rng.uniform(0.5, 1.5, shape) * (gain if name == "gamma" else 1.0)
    elif len(shape) == 1:
        value = rng.normal(0, 0.3, shape)
    else:
        depthwise = class_name == "DepthwiseConv2D" or name == "depthwise_kernel"
        fan_in = shape[0] * shape[1] if depthwise else np.prod(shape[:-1])
        value = rng.standard_normal(shape, np.float32)
        value *= np.sqrt(2 / fan_in) * gain
    return value.astype(np.float32, copy=False)


def gain_of(model):
    """Of a Keras model or a backbone: activations of EfficientNet must not grow, or its gates turn rounding into noise.

    Without residuals, smaller ones would make a model deaf to its image. Lite has no gates, and its ReLU6 has to show.
    """
    name = f"{model.name} {type(model).__name__}".lower()
    return 1.0 if "efficientnet" not in name else 0.9 if "lite" in name else 0.65


def numbered(layers):
    """`(layer, number within its class)` of layers of the backbone, or of those with weights of a Keras model."""
    counts = collections.Counter()
    for layer in layers:
        kind = getattr(layer, "class_name", type(layer).__name__)
        yield layer, counts[kind]
        counts[kind] += 1


def assign(model):
    """Gives a Keras model its weights."""
    for layer, number in numbered(layers_of(model)):
        for i, variable in enumerate(layer.weights):
            if variable.name != "count":
                variable.assign(draw(type(layer).__name__, number, i, variable.name, variable.shape, gain_of(model)))
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


@functools.lru_cache(maxsize=4)
def shapes_of(backbone):
    image = jax.ShapeDtypeStruct((1, backbone.min_size, backbone.min_size, 3), np.float32)
    return jax.eval_shape(backbone.init, jax.random.key(0), image)


@functools.lru_cache(maxsize=2)
def variables_of(backbone):
    """The weights of `assign` for a backbone, without Keras and without a file."""
    layers = backbone.keras_layers()
    numbers = {layer.path: number for layer, number in numbered(layers)}
    arrays = {}
    for leaf in keras_layout.leaves(layers, shapes_of(backbone)):
        kind, number = leaf.layer.class_name, numbers[leaf.layer.path]
        value = draw(kind, number, int(leaf.keys[-1]), leaf.keys[0], leaf.keras_shape, gain_of(backbone))
        arrays[leaf.path] = value.transpose(leaf.transpose) if leaf.transpose else value
    return variables.nest(arrays)


def load(path, backbone, sha256=""):
    return keras_weights.load(path, backbone.keras_layers(), shapes_of(backbone), sha256)


def base(name, size, **options):
    """Keras' model without top for images of `size`, with its weights."""
    return assign(MAKERS[name](weights=None, include_top=False, input_shape=(*size, 3), **options))


MIDDLE = {
    "vgg": ("block3", "{}_pool"),
    "resnet": ("conv4_block2", "{}_out"),
    "resnet_v2": ("conv4_block2", "{}_out"),
    "inception_v3": ("mixed5", "{}"),
    "inception_resnet_v2": ("block17_8", "{}_ac"),
    "mobilenet_v1": ("conv_pw_6", "{}_relu"),
    "mobilenet_v2": ("block_8", "{}_add"),
    "mobilenet_v3": ("expanded_conv_5", "{}_add"),
    "densenet": ("conv4_block3", "{}_concat"),
    "nasnet": ("normal_A_block_8", "normal_concat_8"),
    "efficientnet": ("block4b", "{}_add"),
    "efficientnet_v2": ("block4b", "{}_add"),
}
SUMS = {"xception": ("block6", 4), "convnext": ("stage_2_block_3", 9)}  # without names: their place among all


def middle_of(name, model):
    """A middle stage, and the layer or operation of the Keras `model` that ends it."""
    family = next(key for key, (_, makers) in FAMILIES.items() if name in makers)
    if family in SUMS:
        stage, place = SUMS[family]
        return stage, [operation for operation in model.operations if type(operation).__name__ == "Add"][place]
    stage, end = MIDDLE[family]
    return stage, model.get_layer(end.format(stage))


def pooled(output):
    """What Keras gives of a model without top, averaged over the map where it is one."""
    return output if len(output.shape) == 2 else keras.ops.mean(output, (1, 2))


def assert_close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
