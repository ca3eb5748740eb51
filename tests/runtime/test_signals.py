"""A signal is obeyed between steps, and within seconds where a process compiles, waits or reads."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_main import ENVIRONMENT, command, write_config

from tltrain.cache import features
from tltrain.errors import TerminatedError
from tltrain.runtime import signals

# the main thread waits for itself in C, where no Python runs, as it does while XLA compiles
BLOCKED = """
import ctypes
from tltrain.runtime import signals
with signals.noted(), signals.abandonable("compiling"):
    print("ready", flush=True)
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock), libc.pthread_mutex_lock(lock)
"""


@pytest.fixture
def soon():
    """Sends this process a signal in a moment."""
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    yield timer.start
    timer.join()


def test_a_process_that_compiles_ends_within_seconds():
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until it is in C
    started = time.monotonic()
    process.terminate()
    error = process.communicate(timeout=30)[1]
    assert (process.returncode, time.monotonic() - started < 10) == (143, True)
    assert error.strip() == "tltrain: stopped while compiling; nothing is lost; the same command goes on"


def test_a_process_that_waits_for_the_features_of_another_ends_at_once(tmp_path, soon):
    with (tmp_path / "store.lock").open("w") as held, signals.noted():
        fcntl.flock(held, fcntl.LOCK_EX)
        soon()
        with pytest.raises(signals.Abandoned, match="stopped while waiting"), features._locked(tmp_path / "store.lock"):
            pytest.fail("the lock was held")


def test_elsewhere_a_signal_is_noted_and_what_can_be_abandoned_does_not_begin(soon):
    with signals.noted() as stop:
        assert not stop()
        soon()
        while not stop():
            time.sleep(0.01)
        with pytest.raises(signals.Abandoned), signals.abandonable("reading"):
            pytest.fail("begun")
    with signals.noted() as stop, signals.abandonable("reading"):
        assert not stop(), "the next command of a process begins anew"


@pytest.mark.full
def test_a_run_that_compiles_is_abandoned_and_the_same_command_goes_on(images, tmp_path):
    config = write_config(tmp_path, images, "config.update_from_flattened_dict({'model.backbone': 'inception_v3'})")
    config.write_text(config.read_text().replace("(32, 32)", "(96, 96)").replace("block_1", "mixed4"))
    environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "XLA_FLAGS": ""}
    line = command(
        config, "--workdir", str(tmp_path / "run"), "--config.probe.epochs=0", "--config.features.enabled=off"
    )
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "Compiling" not in process.stdout.readline():
        pass
    time.sleep(3)
    started = time.monotonic()
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, time.monotonic() - started < 10) == (TerminatedError.exit_code, True), error
    assert "stopped while compiling; nothing is lost" in error
