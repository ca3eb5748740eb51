"""The text of a TFDS set is what the config names of its features, whether or not TFDS declares a pair of them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import IMAGES
from test_kinds import Numbers

from tltrain import config as config_lib
from tltrain.data import sources
from tltrain.errors import DataError

TEXTS = Numbers(8)


class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As glue/mrpc is: no supervised keys, two sentences, and more beside them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "sentence1": tfds.features.Text(),
            "sentence2": tfds.features.Text(),
            "idx": tfds.features.Scalar(np.int32),
            "label": tfds.features.ClassLabel(names=("other", "same")),
            "score": tfds.features.Scalar(np.float32),
            "picture": tfds.features.Image(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            texts = {"sentence1": f"é {i}", "sentence2": f'"{i}"'}
            yield i, texts | {"idx": i, "label": i % 2, "score": i / 2, "picture": np.zeros((8, 8, 3), np.uint8)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Pairs(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def load(prepared):
    def load(kind=TEXTS, **changes):
        config = config_lib.default()
        config.data.update(source="tfds:pairs", data_dir=str(prepared), **{"text": ("sentence1",)} | changes)
        return sources.load(config, kind)

    return load


def texts(data):
    return {split.read(i).decode(): split.labels[i] for split in data.splits.values() for i in range(len(split.ids))}


def test_one_feature_is_its_bytes_and_two_are_a_json_list(load):
    one, two = load(), load(text=("sentence1", "sentence2"))
    assert one.class_names == ("other", "same") and one.kind == TEXTS
    assert texts(one) == {f"é {i}": i % 2 for i in range(20)}
    assert texts(two) == {f'["é {i}", "\\"{i}\\""]': i % 2 for i in range(20)}
    fingerprints = {data.splits["train"].fingerprint for data in (one, two)}
    assert len(fingerprints) == 2, "what is stored of the one is not taken for the other"


def test_a_label_is_that_of_its_own_feature_though_labels_are_kept(load):
    assert load().task == load().task == "classification"
    for _ in range(2):  # read, and from the cache
        numbers = load(label="score")
        assert numbers.task == "regression" and texts(numbers) == {f"é {i}": i / 2 for i in range(20)}
        assert texts(load(label="idx")) == {f"é {i}": i for i in range(20)}


BAD = {
    "no feature": (
        {"text": ("text",)},
        "pairs/1.0.0 has no feature 'text'; its features are .*sentence1.*set data.text",
    ),
    "no text": ({"text": ("idx",)}, "the feature 'idx' of pairs/1.0.0 is no text; .*set data.text"),
    "no label": ({"label": "class"}, "no feature 'class'; .*set data.label"),
    "no class": ({"label": "sentence2"}, "no labels that are classes or a number"),
    "an image kind": ({"kind": IMAGES}, "no labels that are classes or a number; TFDS declares None"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_feature_that_is_not_there_is_refused_with_those_there_are(case, load):
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
