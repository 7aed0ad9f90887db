"""Every exception localflow raises on purpose; each words its own message and keeps its data as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class LocalflowError(Exception):
    """The root of everything below; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


# -- authoring ------------------------------------------------------------------------------------------------------


class ReservedArgumentError(LocalflowError, TypeError):
    """A task or flow names a parameter that localflow itself takes at the call."""

    def __init__(self, kind: str, name: str, parameter: str) -> None:
        self.kind, self.name, self.parameter = kind, name, parameter
        super().__init__(
            f"{kind} '{name}' has a parameter named '{parameter}', which localflow takes for itself at every call; "
            "give the parameter another name"
        )


class OutsideFlowError(LocalflowError):
    """`submit` was called where no flow is running."""

    def __init__(self, task: str, method: str, place: str) -> None:
        self.task, self.method = task, method
        super().__init__(
            f"'{task}.{method}(...)' was called {place}; call it in the body of a flow, "
            f"or call '{task}(...)' to run the plain function"
        )


class NoRunError(LocalflowError):
    """Something that belongs to a run was asked for where no flow and no task is running."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} was called where no flow is running; call it in the body of a flow or of a task")


class ForeignFutureError(LocalflowError):
    """A future of one flow run was passed to a call of another one that does not share its engine."""

    def __init__(self, future: str, its_run: str, this_run: str) -> None:
        super().__init__(
            f"future '{future}' belongs to flow run '{its_run}', which is still running, and was passed to a call in "
            f"flow run '{this_run}'; wait for it there and pass its result"
        )


class MappingLengthMismatchError(LocalflowError, ValueError):
    """The iterables that a `map` is to take apart in step are not of one length.

    Attributes:
        task: the task's name.
        lengths: the number of items of each, as text, by argument.
        made: how many task runs there were before it showed; none of them if all iterables have a length.
    """

    def __init__(self, task: str, lengths: Mapping[str, str], made: int = 0) -> None:
        self.task, self.lengths, self.made = task, dict(lengths), made
        counts = ", ".join(f"'{name}' has {length}" for name, length in lengths.items())
        super().__init__(
            f"'{task}.map(...)' takes an item of each iterable for each run, but they are not of one length: {counts}; "
            f"{f'{made} task run(s) had been made before' if made else 'nothing has run'}. "
            "Put unmapped(...) around what shall go to every run"
        )


class MappingMissingIterableError(LocalflowError, TypeError):
    """A `map` has nothing to map over."""

    def __init__(self, task: str, given: Mapping[str, str]) -> None:
        self.task, self.given = task, dict(given)
        arguments = ", ".join(f"'{name}' is {kind}" for name, kind in given.items()) or "no arguments were given"
        super().__init__(
            f"'{task}.map(...)' has nothing to map over: {arguments}; pass a list or another iterable, "
            f"or call '{task}(...)' for a single run"
        )


class NoFingerprintError(LocalflowError):
    """A value has no fingerprint that would be the same in another process."""


class NotCacheableError(LocalflowError):
    """A call has no cache key, so its result is neither looked for nor kept; `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class FlowDepthError(LocalflowError):
    """Flows call flows too deeply, most likely without end."""

    def __init__(self, flow: str, limit: int) -> None:
        super().__init__(f"flow '{flow}' was called {limit} flows deep; does it call itself without end?")


class ParameterError(LocalflowError, TypeError):
    """Values that a flow was called with do not fit its annotations.

    Attributes:
        problems: one line for each.
    """

    def __init__(self, described: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        text = "\n".join(f"{described}: {problem}" for problem in self.problems)
        super().__init__(f"{text}\n(validate_parameters=False lets everything pass)")


# -- outcomes that `result()` raises ---------------------------------------------------------------------------------


class RunFailedError(LocalflowError):
    """A run ended FAILED with a message and no exception, as `return Failed(message=...)` makes it."""


class TaskFailedError(RunFailedError):
    """A task's exception that cannot travel as itself: it could not be rebuilt here, or would end the program.

    Attributes:
        original_type: the exception's type name, such as `"SystemExit"`.
        message: what `str()` of it gave.
        traceback_text: the full traceback as text.
    """

    def __init__(self, original_type: str, message: str, traceback_text: str = "") -> None:
        self.original_type, self.message, self.traceback_text = original_type, message, traceback_text
        super().__init__(original_type, message, traceback_text)

    def __str__(self) -> str:
        headline = f"{self.original_type}: {self.message}" if self.message else self.original_type
        return f"{headline}\n\n{self.traceback_text.rstrip()}" if self.traceback_text else headline


class WorkerCrashedError(LocalflowError):
    """A run ended CRASHED: its worker or its engine died."""


class RunCancelledError(LocalflowError):
    """A run ended CANCELLED."""


class RunTimedOutError(LocalflowError, TimeoutError):
    """A run took longer than its `timeout_seconds`."""


class UpstreamFailedError(LocalflowError):
    """A run never started because an upstream did not complete; the cause is the root failure."""


class UnfinishedRunError(LocalflowError):
    """The result of a run was asked for before the run had ended."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the run is not final yet, its state is {state}; wait for it first")


class UnpicklableError(LocalflowError):
    """A value cannot be sent between the engine and a worker process."""


class LargeValueError(LocalflowError):
    """The file of a large value cannot be written or read.

    Attributes:
        path: the file.
        size: how many bytes it takes, as far as that is known.
    """

    def __init__(self, path: str, size: int, cause: str, *, reading: bool = False) -> None:
        self.path, self.size, self.cause, self.reading = path, size, cause, reading
        if reading:
            text = f"the large value in {path} ({size} bytes) cannot be read: {cause}; run its task again"
        else:
            text = (
                f"a large value cannot be written to {path}: {cause}, at least {size} bytes are needed; "
                "free some space or raise the limit on the size of files"
            )
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _large_value_error, (self.path, self.size, self.cause, self.reading)


def _large_value_error(path: str, size: int, cause: str, reading: bool) -> LargeValueError:
    return LargeValueError(path, size, cause, reading=reading)


# -- configuration and plugins: exit code 2 --------------------------------------------------------------------------


class UsageError(LocalflowError):
    """The command line or a reference in it is wrong."""

    exit_code = 2


class RunNotFoundError(UsageError):
    """No recorded run has this id, id prefix or name, or several have."""


class NotResumableError(UsageError):
    """A flow run cannot be resumed: it completed, is part of another one, or its flow cannot be found again."""


class ChangedSinceError(UsageError):
    """Code or arguments of completed task runs have changed, and `resume` was asked to be strict about it."""


class FlowNotFoundError(UsageError):
    """A file holds no flow of that name, or several and none was named."""


class ConfigError(UsageError):
    """localflow.toml, its environment or its command-line overrides hold mistakes; all of them are listed.

    Attributes:
        problems: one line each, with file and line (or variable, or flag) and the fix.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class PluginError(UsageError):
    """A plugin breaks the rules: a misspelt hook, a name taken twice, options that fit nothing."""


class PluginLoadError(PluginError):
    """A plugin's import failed; `__cause__` says why."""

    def __init__(self, plugin: str, distribution: str, reason: str) -> None:
        self.plugin, self.distribution = plugin, distribution
        super().__init__(
            f"plugin '{plugin}' of distribution '{distribution}' failed to load: {reason}; "
            f"repair or uninstall it, or set LOCALFLOW_DISABLE_PLUGINS={plugin}"
        )


class UnknownPluginError(PluginError):
    """No plugin registered this name."""

    def __init__(self, role: str, name: str, installed: Iterable[str], broken: Sequence[str] = ()) -> None:
        self.role, self.name, self.installed = role, name, tuple(sorted(installed))
        text = f"unknown {role} '{name}'{suggestion(name, self.installed)}; installed: {', '.join(self.installed)}"
        super().__init__("\n".join([text, *broken]))


class ExecutorError(LocalflowError):
    """An executor broke its contract while a flow ran; the message names it."""

    exit_code = 4


# -- state stores: exit code 3 ---------------------------------------------------------------------------------------


class StoreError(LocalflowError):
    """The state store cannot be opened, read or written; the message names the path and the cause."""

    exit_code = 3


class CorruptStoreError(StoreError):
    """The store fails its checks; it is left as it is.

    Attributes:
        path: the file, with the line where there are lines.
        detail: what is wrong with it.
    """

    def __init__(self, path: object, detail: str) -> None:
        self.path, self.detail = str(path), detail
        super().__init__(
            f"{path}: {detail}; nothing was changed; "
            "run 'localflow doctor --repair' to copy it aside and save what can be read"
        )


class RunClaimedError(StoreError):
    """Another process is running this flow run."""

    def __init__(self, run: str, pid: int, since: str) -> None:
        self.run, self.pid = run, pid
        super().__init__(
            f"run {run} is being executed by pid {pid} since {since}; wait for its end, or stop it: "
            f"localflow cancel {run}"
        )


class StoreVersionError(StoreError):
    """The store was made by another version of localflow."""

    def __init__(self, path: object, found: int, supported: int) -> None:
        super().__init__(
            f"state store {path} has format version {found}, this localflow reads version {supported}; "
            "use the localflow that made it, or another path"
        )


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or an empty string."""
    import difflib  # nobody needs it before there is a mistake

    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
