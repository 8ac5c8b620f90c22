"""What a task is to the code that does its work, and which tasks there are.

Decides how parameters are checked: what is missing first, all of it; then what is unknown; then
what cannot be read. A task gets its parameters as text and a :class:`TaskHandle`, and returns what
it has to say and, if it has more to be done, containers of further tasks.

The contract of :meth:`Task.run`. It runs *at least once*: after a crash, a lost lease or a passing
error it is called again with the same parameters and the same ``handle.task_id``. So it looks first
whether its work is done, and names what it makes after its id or its operation's. It waits with
``handle.wait`` only, so that it ends soon when it is told to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from tidegate.errors import InvalidArgumentError, NotFoundError
from tidegate.operations.retrying import RetryPolicy
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.operations.locks import OperationLock
    from tidegate.operations.model import TaskContainer

TASK_TIMEOUT_S: Final = 24 * 3600.0
SILENCE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a task.

    Attributes:
        name: as given.
        kind: what its text must be, in a word or two.
        parse: reads it; raises ``ValueError`` or an error of ours when it cannot be read.
    """

    name: str
    kind: str = "text"
    parse: Callable[[str], object] = str


def boolean(text: str) -> bool:
    """``true`` or ``false``."""
    if text not in {"true", "false"}:
        raise ValueError("write true or false")
    return text == "true"


def count(text: str) -> int:
    """A number of things."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError("write a whole number that is not negative")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise ValueError("write names with commas between, and none empty")
    return found


class TaskHandle(Protocol):
    """What a task has of the runner while it runs."""

    @property
    def operation_id(self) -> str:
        """Of the operation it belongs to."""

    @property
    def operation_parameters(self) -> Mapping[str, str]:
        """What the operation was enqueued with."""

    @property
    def task_id(self) -> str:
        """Its own; the same in every attempt."""

    def log(self, text: str) -> None:
        """Add a line to the operation's log; never raises."""

    def check(self) -> None:
        """Go on only when nobody wants the task to stop.

        Raises:
            CancelledError: the operation is being cancelled, or the task takes too long.
        """

    def wait(self, seconds: float) -> None:
        """Wait, and no longer than until somebody wants the task to stop.

        Raises: as :meth:`check`.
        """


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task has done, in words, and what is to be done after it."""

    output: str = ""
    containers: tuple[TaskContainer, ...] = ()


class Task(ABC):
    """One kind of work; an instance is made once and used by many threads.

    Attributes:
        stage: a word for what it is about; approvals may name it.
        is_operation: it can be enqueued by name. Only read of tasks that were added to ours.
        version: raise it when what a stored task means changes.
        timeout_s: after this long the task is told to stop, and counts as failed.
        silence_s: a task that neither says anything nor waits for longer is shown as stuck.
        at_once_max: operations of this name that are worked on at the same time; 0: no limit.
        role: of those who may enqueue it, and ask something of it: ``operate`` or ``admin``.
        retry: when it is tried again.
    """

    stage: str = ""
    is_operation: ClassVar[bool] = False
    version: ClassVar[int] = 1
    timeout_s: ClassVar[float] = TASK_TIMEOUT_S
    silence_s: ClassVar[float] = SILENCE_S
    at_once_max: ClassVar[int] = 0
    role: ClassVar[str] = "operate"
    retry: ClassVar[RetryPolicy] = RetryPolicy()

    @abstractmethod
    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        """Do the work; see the module."""

    @abstractmethod
    def required_parameters(self) -> Sequence[Parameter]:
        """What must be given."""

    def optional_parameters(self) -> Sequence[Parameter]:
        """What may be given; an empty text counts as not given."""
        return ()

    def check(self, parameters: Mapping[str, str]) -> None:
        """Refuse, before anything is stored, what cannot work; reads the world, changes nothing.

        Raises:
            TidegateError: saying why.
        """
        del parameters

    def preview(self, parameters: Mapping[str, str]) -> Sequence[TaskContainer]:
        """What it would emit, as far as that is known before it runs."""
        del parameters
        return ()

    def locks(self, parameters: Mapping[str, str]) -> Sequence[OperationLock]:
        """What an operation that begins with this task keeps others from."""
        del parameters
        return ()

    def servers(self, parameters: Mapping[str, str]) -> Sequence[str]:
        """Names of the database servers that an operation that begins with this task works at."""
        del parameters
        return ()

    def is_undoable(self, parameters: Mapping[str, str]) -> bool:
        """Whether :meth:`undo` takes back what it does."""
        del parameters
        return False

    def undo(self, parameters: Mapping[str, str], handle: TaskHandle) -> str:
        """Take back what :meth:`run` did, wholly or in part; called like it, at least once.

        ``handle.task_id`` is that of the task whose work is taken back.
        """
        raise NotImplementedError

    def is_point_of_no_return(self, parameters: Mapping[str, str]) -> bool:
        """Whether the operation cannot be cancelled any more once it is done."""
        del parameters
        return False


class TaskCatalogue:
    """The tasks there are, and which of them can be enqueued by name; frozen once it is made."""

    def __init__(self, tasks: Mapping[str, Task], operations: Sequence[str] = ()) -> None:
        missing = sorted(set(operations) - set(tasks))
        assert not missing, f"operations without a task: {missing}"
        self._tasks = dict(tasks)
        self.operations = tuple(sorted(operations))

    def extended(self, tasks: Mapping[str, Task]) -> TaskCatalogue:
        """With further tasks, each of which says itself whether it can be enqueued by name.

        Raises:
            InvalidArgumentError: a name is taken.
        """
        if taken := sorted(set(tasks) & set(self._tasks)):
            raise InvalidArgumentError(
                f"a task of your own has the name of one of ours: {', '.join(taken)}",
                next_step="give its entry point another name",
            )
        own = [name for name, task in tasks.items() if task.is_operation]
        return TaskCatalogue({**self._tasks, **tasks}, [*self.operations, *own])

    def find(self, name: str) -> Task:
        """The task of that name.

        Raises:
            NotFoundError: nobody implements it.
        """
        found = self._tasks.get(name)
        if found is None:
            raise NotFoundError(
                f"no implementation found for task {name}",
                next_step="upgrade the node to a version that has it",
                task=name,
            )
        return found

    def operation(self, name: str) -> Task:
        """The task of a name that can be enqueued.

        Raises:
            InvalidArgumentError: it cannot.
        """
        if name not in self.operations:
            raise InvalidArgumentError(
                f"{name!r} is not a cluster operation that can be enqueued",
                next_step=f"use one of {', '.join(self.operations) or 'none: there are none'}",
                operation=name,
            )
        return self.find(name)


def check_parameters(name: str, task: Task, given: Mapping[str, str]) -> None:
    """Compare parameters with what a task declares.

    Raises:
        InvalidArgumentError: naming all that are missing, or all that are unknown, or the first one
            that cannot be read.
    """
    if open_ones := [each for each, text in given.items() if redacted(text) != text]:
        raise InvalidArgumentError(
            f"{name}: a password stands in {', '.join(sorted(open_ones))}",
            next_step="pass a reference to it, env:NAME or file:/path: parameters are stored",
        )
    required, optional = task.required_parameters(), task.optional_parameters()
    known = [each.name for each in (*required, *optional)]
    missing = [each.name for each in required if not given.get(each.name)]
    if missing:
        raise InvalidArgumentError(
            f"{name}: required parameters are missing: {', '.join(missing)}",
            next_step=f"give {' '.join(f'{each}=...' for each in missing)}",
            missing=missing,
        )
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidArgumentError(
            f"{name}: unknown parameters: {', '.join(unknown)}",
            next_step=f"required: {', '.join(each.name for each in required)}; optional:"
            f" {', '.join(each.name for each in optional) or 'none'}",
            unknown=unknown,
        )
    for each in (*required, *optional):
        text = given.get(each.name)
        if not text:
            continue
        try:
            each.parse(text)
        except (ValueError, InvalidArgumentError) as error:
            raise InvalidArgumentError(
                f"{name}: {each.name}={text} is not a {each.kind}: {error}",
                next_step=f"give {each.name} as a {each.kind}",
                parameter=each.name,
            ) from None
