"""The fields of one record, each asked for with the type it should have; what does not fit is told with its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

Json: TypeAlias = Any


class Dropped(Exception):
    """Raised by a reader for a record that is left out; the reason is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fault(Exception):
    """A field that cannot be used; the text begins with the field. All of a file become one RequestError."""


@frozen(eq=False)
class Fields:
    """One object of a file, by field.

    A field that is null is one that is not there, and a null in a list of texts is a blank.

    Attributes:
        data: the object.
        path: where in its record it is, ``requested_rewrite[0].`` say; empty for the record itself.
        used: fields that were asked for, so that the others are known to be unknown.
        inner: nested objects that were asked for, by path.
    """

    data: Mapping[str, Json]
    path: str = ""
    used: set[str] = field(factory=set)
    inner: dict[str, Fields] = field(factory=dict)

    def form(self, forms: Mapping[str, Collection[str]]) -> str:
        """Which of several forms it has: the one that most of its fields are of, the first of several such.

        So a field that is missing is told as missing, not as another form. Args: ``forms``: name -> fields.
        """
        shared = {form: len(set(names) & self.data.keys()) for form, names in forms.items()}
        form = max(shared, key=lambda each: shared[each])
        if not shared[form]:
            first = next(iter(forms[form]))
            raise Fault(f"{self.path}{first} is missing, as are all fields of the forms {', '.join(forms)}")
        return form

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        self.used.add(name)
        return self.data.get(name) is not None

    def raw(self, name: str) -> Json:
        """A field's value as it is, nested ones and all; None when it is not there."""
        return self._first((name,))[1]

    def text(self, *names: str, empty: bool = False) -> str:
        """The text of the first of these fields that is there, without outer spaces.

        Args:
            empty: whether it may be the empty text.
        """
        name, value = self._first(names)
        if value is None:
            raise Fault(f"{self.path}{name} is missing")
        if not isinstance(value, str):
            raise Fault(f"{self.path}{name} is {kind_of(value)}, expected text")
        if not value.strip() and not empty:
            raise Fault(f"{self.path}{name} is empty")
        return value.strip()

    def optional_text(self, *names: str) -> str | None:
        """The text of the first of these fields that is there and not empty, or None."""
        _, value = self._first(names)
        return None if value is None else self.text(*names, empty=True) or None

    def number(self, name: str) -> int:
        """A whole number."""
        _, value = self._first((name,))
        if type(value) is not int:
            told = "missing" if value is None else f"{kind_of(value)}, expected a whole number"
            raise Fault(f"{self.path}{name} is {told}")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """One text or a list of texts, blank ones left out; empty when none of the fields is there."""
        name, value = self._first(names)
        if value is None:
            return ()
        return tuple(self._spelled(name, [value] if isinstance(value, str) else value, "text or a list of texts"))

    def answers(self, *names: str) -> tuple[tuple[str, ...], bool]:
        """Accepted answers given as text, a list of texts, or a list of such lists; and whether they were nested.

        All spellings of all inner lists, each once; blank ones left out.
        """
        name, value = self._first(names)
        if value is None:
            return (), False
        nested = isinstance(value, list) and any(isinstance(each, list) for each in value)
        listed = value if isinstance(value, list) else [value]
        flat: list[str] = []
        for i, each in enumerate(listed):
            place = f"{name}[{i}]" if isinstance(value, list) else name
            if isinstance(each, list):
                flat += self._spelled(place, each, "a list of texts")
            elif isinstance(each, str):
                flat.append(each.strip())
            elif each is not None:
                raise Fault(f"{self.path}{place} is {kind_of(each)}, expected text, a list of texts, or lists of them")
        return tuple(dict.fromkeys(each for each in flat if each)), nested

    def object(self, name: str) -> Fields:
        """A nested object, which must be there."""
        _, value = self._first((name,))
        if not isinstance(value, Mapping):
            told = "missing" if value is None else f"{kind_of(value)}, expected an object"
            raise Fault(f"{self.path}{name} is {told}")
        return self._nested(value, f"{self.path}{name}.")

    def objects(self, name: str) -> list[Fields]:
        """A list of nested objects; empty when the field is not there."""
        _, value = self._first((name,))
        if value is None:
            return []
        if not isinstance(value, list):
            raise Fault(f"{self.path}{name} is {kind_of(value)}, expected a list of objects")
        for i, each in enumerate(value):
            if not isinstance(each, Mapping):
                raise Fault(f"{self.path}{name}[{i}] is {kind_of(each)}, expected an object")
        return [self._nested(each, f"{self.path}{name}[{i}].") for i, each in enumerate(value)]

    def group(self, name: str) -> dict[str, list[Fields]]:
        """An object of lists of objects (``locality``, ``portability``); sub-keys that are null are left out."""
        if not self.has(name):
            return {}
        inner = self.object(name)
        return {key: inner.objects(key) for key in inner.data if inner.has(key)}

    def fault(self, told: str) -> Exception:
        """A fault of this object in words, which begin with the field; to be raised."""
        return Fault(f"{self.path}{told}")

    def unknown(self) -> dict[str, Json]:
        """Fields that nobody asked for, by path; those of nested objects too where the object was asked for."""
        found = {f"{self.path}{key}": value for key, value in self.data.items() if key not in self.used}
        for nested in self.inner.values():
            found |= nested.unknown()
        return found

    def _first(self, names: Sequence[str]) -> tuple[str, Json]:
        """The first of these fields that is there, and its value; else the first name, and None."""
        self.used.update(names)
        return next(((n, self.data[n]) for n in names if self.data.get(n) is not None), (names[0], None))

    def _nested(self, value: Mapping[str, Json], path: str) -> Fields:
        return self.inner.setdefault(path, Fields(value, path))

    def _spelled(self, name: str, listed: Json, expected: str) -> list[str]:
        """Texts of a list without outer spaces, blanks left out."""
        if not isinstance(listed, list):
            raise Fault(f"{self.path}{name} is {kind_of(listed)}, expected {expected}")
        for i, each in enumerate(listed):
            if each is not None and not isinstance(each, str):
                raise Fault(f"{self.path}{name}[{i}] is {kind_of(each)}, expected text")
        return [each.strip() for each in listed if each is not None and each.strip()]


def kind_of(value: Json) -> str:
    """A value as messages name it, by the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"
