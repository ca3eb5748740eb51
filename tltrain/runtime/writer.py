"""What process 0 holds alone, such as the record of a run, as all processes see it."""

from collections.abc import Callable
from typing import Any, TypeVar

from tltrain.runtime import hosts

Value = TypeVar("Value")


class _Only:
    """Stands for an object of the writer: methods run there, and all get what they return or raise.

    To close it asks nobody, for a process that failed alone does that too.
    """

    def __init__(self, make: Callable[[], Any], known: dict[str, Any]) -> None:
        vars(self).update(known)
        self._made: list[Any] = []
        hosts.on_writer(lambda: self._made.append(make()))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments, **options):
            return hosts.on_writer(lambda: getattr(self._made[0], name)(*arguments, **options))

        return call

    def close(self) -> None:
        for one in self._made:
            one.close()


def only(make: Callable[[], Value], **known: Any) -> Value:
    """What `make` makes, on the writer alone; elsewhere all but the attributes `known` is asked there, see `_Only`."""
    made: Any = make() if hosts.count() == 1 else _Only(make, known)
    return made
