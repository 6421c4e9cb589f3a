"""One record of a file, as it was found."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Record:
    """Plain data of one request, and what is wrong with the way it is written.

    Attributes:
        place: where it stands, such as ``line 3`` or ``line 12 (element 3)``; "" for the whole file.
        data: as JSON gives it; None when the faults leave none.
        faults: a record with any is never used; its data is looked at for more of them.
    """

    place: str
    data: Any = None
    faults: tuple[str, ...] = ()
