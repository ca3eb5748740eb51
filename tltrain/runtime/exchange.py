"""Values of the host from process to process: trees of dicts and lists of JSON values and NumPy arrays.

They go through the key-value service of `jax.distributed`, which process 0 serves and which needs no device.
"""

from typing import Any

import jax
from flax import serialization
from jax._src import distributed

from tltrain.runtime import pace

_CHUNK = 2**20  # bytes of a message: the service takes up to 4 MiB
_WAIT_MS = 10_000  # of one question for a value; it is asked again, for `Watch` ends a process that waits in vain


def put(key: str, value: Any) -> None:
    """Gives `value` the name `key`, for good."""
    client = _client()
    data = serialization.msgpack_serialize({"value": _plain(value)})
    parts = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    for i, part in enumerate(parts):
        client.key_value_set_bytes(f"{key}/{i}", part)
    client.key_value_set(f"{key}/parts", str(len(parts)))


def _plain(value):
    """With lists where there are tuples."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def get(key: str) -> Any:
    """The value of that name, as soon as there is one; tuples are lists. Raises JaxRuntimeError without a service."""
    client = _client()
    with pace.at(pace.WAITING):
        while True:
            try:
                num_parts = int(client.blocking_key_value_get(f"{key}/parts", _WAIT_MS))
                parts = [client.blocking_key_value_get_bytes(f"{key}/{i}", _WAIT_MS) for i in range(num_parts)]
                return serialization.msgpack_restore(b"".join(parts))["value"]
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def delete(key: str) -> None:
    """Forgets the value of that name, and those below it."""
    _client().key_value_delete(key)


def increment(key: str, by: int = 1) -> int:
    """Adds `by` to the number of that name, 0 at first, whoever else does so meanwhile; returns what it is then."""
    return _client().key_value_increment(f"tltrain/{key}", by)


def _client() -> Any:
    return distributed.global_state.client
