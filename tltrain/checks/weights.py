"""The pretrained weights: the right file, and every array of it where it belongs."""

from collections.abc import Iterator

from tltrain import hub, hub_download
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine
from tltrain.weights import download


def check_weights(case: Case) -> Iterator[Finding]:
    """What would be loaded, what would be new, what would be left in the file."""
    if case.weight_path is None:
        if hub.is_random(source := case.config.model.weights):
            yield advice(f"model.weights = {source!r}: nothing is pretrained, so frozen stages compute noise")
        return
    loaded = case.loaded
    assert loaded is not None, "there is a path"
    yield fine(
        f"{case.weight_path.name} fills all {loaded.num_arrays} arrays of {case.config.model.backbone}; new: head"
        + (f"; not used: {', '.join(loaded.ignored)}" if loaded.ignored else "")
    )
    published = case.backbone.weight_file
    if published and download.digest(case.weight_path, published.checksum[0]) == published.checksum[1]:
        yield fine(f"its {published.checksum[0]} is that of the published ImageNet file")
    elif case.config.model.sha256:
        yield fine("its sha256 is that of model.sha256")
    elif hub_download.published_sha256(case.weight_path):
        yield fine("its sha256 is that of the file on the Hub")
    else:
        yield fine(f"not verified: sha256 {loaded.sha256} is of no published file; model.sha256 would pin it")
