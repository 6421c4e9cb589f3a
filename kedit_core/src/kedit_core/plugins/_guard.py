"""One plugin's implementations, checked before they are registered and guarded when they are called.

pluggy lets an implementation's exception out without the plugin's name; the guards add it. They stand around each
function by itself, so that a failure is laid at the door of the one who raised it and of nobody it passes through.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

from attrs import frozen

from kedit_core.contract import PROJECT, HookSpecs, public_hooks
from kedit_core.errors import KeditError, PluginError
from kedit_core.plugins._entries import CORE, FOREIGN_FAILURES, named, nearest, normalized, reason

_MARK = f"{PROJECT}_impl"

Record = Callable[["Implementation", Any], None]


@frozen
class Origin:
    """Who an implementation belongs to: the plugin's name, its distribution and that one's version."""

    plugin: str
    distribution: str
    version: str = ""

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {named(self.distribution, self.version)}"

    def error(self, hook: str, what: str) -> PluginError:
        """A :class:`PluginError` about this plugin; ``what`` completes the sentence begun with its name."""
        return PluginError(f"{self} {what}", plugin=self.plugin, distribution=self.distribution, hook=hook)


@frozen
class Implementation:
    """One function that implements a hook.

    Attributes:
        hook: the hook's name.
        name: the function's own name on its plugin (another one when ``specname`` is used).
        origin: whose it is.
        function: as bound to its plugin.
        options: what ``@hookimpl(...)`` was given.
        arguments: names of its arguments, in their order.
    """

    hook: str
    name: str
    origin: Origin
    function: Callable[..., Any]
    options: Mapping[str, Any]
    arguments: tuple[str, ...]

    @property
    def wrapper(self) -> bool:
        """Whether it runs around the others, as a generator that yields once."""
        return bool(self.options.get("wrapper"))

    def guarded(self, record: Record, chained: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
        """A function to register in its place, which blames this plugin for what it raises.

        Args:
            record: told of each answer that is not None.
            chained: turns the argument ``requests`` into what stands in for it (see ``prepare_requests``).
        """
        if self.wrapper:
            made = _guarded_wrapper(self)
        else:
            place = self.arguments.index("requests") if chained and "requests" in self.arguments else None
            made = _guarded_call(self, record, chained, place)
        # pluggy reads the arguments' names from what is wrapped, whose self is bound already
        functools.update_wrapper(made, self.function)
        made.__dict__[_MARK] = dict(self.options)
        return made

    def blame(self, error: BaseException) -> PluginError:
        """The error that tells what happened here; raise it ``from`` the original."""
        return self.origin.error(self.hook, f"failed in {self.hook} ({reason(error)})")

    def note(self, error: KeditError) -> None:
        """Say on an error that explains itself where it came from."""
        if isinstance(error, PluginError) and (error.plugin, error.hook) == (self.origin.plugin, self.hook):
            return
        if normalized(self.origin.distribution) == CORE:
            return  # the core's own errors say all there is to say
        note = f"in {self.hook} of {self.origin}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def implementations(plugin: object, origin: Origin) -> list[Implementation]:
    """All hook implementations of a plugin object or module.

    Raises:
        PluginError: there is none, or the object is a class; an implementation is of no hook that exists, has arguments
            its hook does not give, default values, keyword-only arguments or ``*args``, is an old-style wrapper, or is
            a wrapper and no generator function.
    """
    if inspect.isclass(plugin):
        raise origin.error("register", "is a class; give an object of it")
    found = []
    for name in dir(plugin):
        # properties and other descriptors are not evaluated: they may do anything
        static = inspect.getattr_static(plugin, name, None)
        options = getattr(static, _MARK, None) or getattr(getattr(static, "__func__", None), _MARK, None)
        if not isinstance(options, Mapping):
            continue
        hook = options.get("specname") or name
        if hook not in public_hooks():
            if options.get("optionalhook"):
                continue
            raise origin.error(hook, f"implements {hook!r}, which is no hook of kedit{nearest(hook, public_hooks())}")
        function = getattr(plugin, name)
        if not inspect.isroutine(function):
            raise origin.error(hook, f"has an unusable {hook}: it is no function")
        arguments = _arguments(function, hook, options, origin)
        found.append(Implementation(hook, name, origin, function, dict(options), arguments))
    if not found:
        raise origin.error("register", "has no function marked with @hookimpl")
    return found


def _arguments(function: Callable[..., Any], hook: str, options: Mapping[str, Any], origin: Origin) -> tuple[str, ...]:
    """Names of an implementation's arguments, all of them checked."""
    given = [name for name in inspect.signature(getattr(HookSpecs, hook)).parameters if name != "self"]
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            kind = parameter.kind.description
            raise origin.error(hook, f"has the {kind} argument {parameter.name!r} in {hook}; use plain arguments only")
        if parameter.default is not parameter.empty:
            # pluggy releases differ on whether such an argument gets the call's value or its default
            raise origin.error(hook, f"gives argument {parameter.name!r} of {hook} a default value; take it away")
        if parameter.name not in given:
            told = f"which has {', '.join(given)}" if given else "which has none"
            raise origin.error(hook, f"asks for the argument {parameter.name!r} in {hook}, {told}")
    if options.get("hookwrapper"):
        raise origin.error(hook, f"has an old-style wrapper of {hook}; write @hookimpl(wrapper=True)")
    if bool(options.get("wrapper")) != inspect.isgeneratorfunction(function):
        remedy = "a wrapper must yield once" if options.get("wrapper") else "only a wrapper may yield"
        raise origin.error(hook, f"has an unusable {hook}: {remedy}")
    if inspect.iscoroutinefunction(function):
        raise origin.error(hook, f"has an unusable {hook}: it is a coroutine, and hooks are plain functions")
    return tuple(parameter.name for parameter in parameters)


def _guarded_call(
    implementation: Implementation, record: Record, chained: Callable[[Any], Any] | None, place: int | None
) -> Callable[..., Any]:
    def guarded(*arguments: Any) -> Any:
        if chained is not None and place is not None:
            arguments = (*arguments[:place], chained(arguments[place]), *arguments[place + 1 :])
        try:
            answer = implementation.function(*arguments)
        except KeditError as error:
            implementation.note(error)
            raise
        except FOREIGN_FAILURES as error:
            raise implementation.blame(error) from error
        if answer is not None:
            record(implementation, answer)
        return answer

    return guarded


def _guarded_wrapper(implementation: Implementation) -> Callable[..., Any]:
    def guarded(*arguments: Any) -> Generator[None, Any, Any]:
        running = implementation.function(*arguments)
        with _Blame(implementation) as before:
            try:
                next(running)
            except StopIteration:
                raise before.error("returned without a yield") from None
        inner: BaseException | None = None
        answer = None
        try:
            answer = yield
        except BaseException as error:
            inner = error
        with _Blame(implementation, passing=inner) as after:
            try:
                if inner is None:
                    running.send(answer)
                else:
                    running.throw(inner)
            except StopIteration as stop:
                return stop.value
            running.close()
            raise after.error("yielded a second time")

    return guarded


class _Blame:
    """Turns what a wrapper raises into a PluginError, and lets through what only passes it."""

    def __init__(self, implementation: Implementation, passing: BaseException | None = None) -> None:
        self.implementation = implementation
        self.passing = passing

    def error(self, what: str) -> PluginError:
        return self.implementation.origin.error(self.implementation.hook, f"{what} in its {self.implementation.hook}")

    def __enter__(self) -> _Blame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or error is self.passing:
            return
        if isinstance(error, KeditError):
            self.implementation.note(error)
        elif isinstance(error, FOREIGN_FAILURES):
            raise self.implementation.blame(error) from error
