"""Stores that several processes compute: each row once, whichever folders they see and however many they are."""

import collections
import runpy
import signal
import time

import pytest
from conftest import TINY
from test_hosts import job, result, whole  # noqa: F401 (fixtures)
from test_main import write_config
from test_train import run

from tltrain import features as verb
from tltrain.cache import extraction, shards, store
from tltrain.models import zoo

# small shards; the rows that are written are noted
COUNTED = """
import os, time
from tltrain.cache import shards, store
shards._FEWEST = 4
write = store.Writer.write

def counted(writer, index, *rest):
    with open({path!r}, "a") as file:
        file.write("".join(f"{{os.getpid()}} {{writer._folder.name}} {{i}}\\n" for i in index))
    time.sleep({seconds})
    write(writer, index, *rest)

store.Writer.write = counted
"""


def written(path):
    """How often each row was, by store and row; and by how many processes."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return collections.Counter((name, i) for _, name, i in lines), len({pid for pid, *_ in lines})


def test_processes_that_see_no_folder_in_common_compute_a_row_once(tiny, tmp_path, job, whole):  # noqa: F811
    code, places = COUNTED.format(path=str(tmp_path / "written"), seconds=0), [tmp_path / "first", tmp_path / "second"]
    for place in places:
        (place / "features").mkdir(parents=True)
    apart = job("apart", 2, features="/proc/self/cwd/features", places=places, code=code)
    assert apart.end() == [0, 0], apart.told()
    rows, num_processes = written(tmp_path / "written")
    assert set(rows.values()) == {1} and len(rows) == 2 * 48 and num_processes == 2
    first, second = ([store.Store(folder) for folder in store.folders(place / "features")] for place in places)
    assert [one.folder.name for one in first] == [one.folder.name for one in second] and len(first) == 4
    for one, other in zip(first, second, strict=True):
        names = {path.name for path in one.folder.glob("*.npy")}
        assert all((one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in names)
    assert result(tmp_path / "apart")[1] == whole(tiny, devices=2)[1]


@pytest.mark.full
def test_rows_that_two_processes_computed_are_kept_by_three(tiny, tmp_path, job, whole):  # noqa: F811
    tiny.batch_size = 24
    code = COUNTED.format(path=str(tmp_path / "written"), seconds=0.5)
    stopped = job("several", 2, code=code)
    until = time.monotonic() + 60
    while not (tmp_path / "written").exists():
        assert time.monotonic() < until, stopped.told()
        time.sleep(0.02)
    stopped.processes[0].send_signal(signal.SIGTERM)
    assert stopped.end() == [143, 143], stopped.told()
    before = sum(written(tmp_path / "written")[0].values())
    assert 0 < before < 2 * 48
    assert job("several", 3, code=code).end() == [0, 0, 0]
    rows, _ = written(tmp_path / "written")
    assert set(rows.values()) == {1} and len(rows) == 2 * 48
    assert result(tmp_path / "several")[1] == whole(tiny, devices=3)[1]


def test_tasks_of_a_job_array_store_what_a_run_needs(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(zoo.BACKBONES, "tiny", TINY)
    monkeypatch.setattr(shards, "_FEWEST", 4)
    path, rows = write_config(tmp_path, images, ""), collections.Counter()
    write = store.Writer.write

    def counted(writer, index, *rest):
        rows.update((writer._folder, int(i)) for i in index)
        write(writer, index, *rest)

    monkeypatch.setattr(store.Writer, "write", counted)
    for task in (5, 7, None):  # sbatch --array=5-7:2, then the same command without an array
        for name, value in {"ID": task, "MIN": 5, "COUNT": 2, "STEP": 2}.items():
            variable = f"SLURM_ARRAY_TASK_{name}"
            monkeypatch.setenv(variable, str(value)) if task else monkeypatch.delenv(variable)
        assert verb.main(["", f"--config={path}"]) == 0
        assert bool(task) == ("does what is missing" in capsys.readouterr().out)
    assert set(rows.values()) == {1} and len(rows) == 2 * 48
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("computed again"))
    run(runpy.run_path(str(path))["get_config"](), tmp_path / "run")
