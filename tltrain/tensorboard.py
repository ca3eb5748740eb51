"""TensorBoard events, by tensorboardX: it writes them without TensorFlow."""

from pathlib import Path

from tensorboardX import SummaryWriter


class Scalars:
    """Scalars by phase and step; one run of TensorBoard a phase. Writes nothing where `folder` is None."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def write(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Adds `values` by tag at `step`; after a resume, later steps of an earlier process are hidden."""
        if self._folder is None:
            return
        if phase not in self._writers:
            self._writers[phase] = SummaryWriter(str(self._folder / phase), purge_step=step)
        for tag, value in values.items():
            self._writers[phase].add_scalar(tag, value, step)
        self._writers[phase].flush()
