"""Several processes at one benchmark, as torchrun and accelerate launch start them.

The first process leads: it takes the folder, decides what is run, and writes results. The others take their share of
the parts of each cell and write them to the same folder. They speak through a store of torch.distributed that the first
one holds; nobody waits for a process that is gone, and a process that only takes long is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from attrs import define, field

from kedit_core.errors import InputError, KeditError

PATIENCE = 300.0  # seconds without a sign of life until a process counts as gone
_BEAT = 1.0  # seconds between signs of life
_POLL = 0.05
_PARTING = 10.0  # seconds that the leader stays for the others to read its last word
_ENDED = "ended"
_store: Any = getattr(dist, "TCPStore", None)  # not there in builds of torch without torch.distributed


class LostError(KeditError):
    """Another process of the benchmark is gone."""


class LeaderEnded(KeditError):
    """The first process ended before this one; it says itself why."""


def leads() -> bool:
    """Whether this is the process that speaks: the only one, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


@define(eq=False)
class Company:
    """The processes of one benchmark, seen from one of them; without a store this one is alone.

    Attributes:
        rank, count: which of how many this is.
        patience: seconds without a sign of life until a process counts as gone.
    """

    rank: int = 0
    count: int = 1
    patience: float = PATIENCE
    _store: Any = None
    _beats: dict[int, tuple[bytes, float]] = field(factory=dict)
    _said: set[str] = field(factory=set)

    @property
    def first(self) -> bool:
        """Whether this one leads."""
        return self.rank == 0

    @property
    def others(self) -> range:
        """All but the leader."""
        return range(1, self.count)

    def mine(self, number: int, total: int) -> bool:
        """Whether part ``number`` of 1 to ``total`` is this process's share; the last one is always the leader's."""
        return (total - number) % self.count == self.rank

    def say(self, what: str, text: str) -> None:
        """Tell the others something, once: what was said first stands. Raises LostError when the leader is gone."""
        if what not in self._said and self._store is not None:
            self._said.add(what)
            with self._leader_there():
                self._store.set(what, text)

    def hear(self, what: str, of: int) -> str:
        """What process ``of`` says, once it does.

        Raises LostError when that process is gone; LeaderEnded when the leader has ended.
        """
        while True:
            with self._leader_there():
                store = self._here()
                if store.check([what]):
                    return str(store.get(what).decode())
                if of == 0 and store.check([_ENDED]):
                    raise LeaderEnded(store.get(_ENDED).decode())
            self._check(of)
            time.sleep(_POLL)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Tell the others when the leader has ended, however it does, and stay until they have heard it."""
        try:
            yield
        except BaseException as error:
            self._end(f"the first process ended with {type(error).__name__}: {error}")
            raise
        self._end("the first process ended before this one had all that it waited for")

    @contextmanager
    def living(self) -> Iterator[None]:
        """Give signs of life for the length of a block, whatever else this process does."""
        if self._store is None:
            yield
            return
        over = threading.Event()
        store = self._store
        who = f"{socket.gethostname()} {os.getpid()}"
        self.say(f"who/{self.rank}", who)

        def beat() -> None:
            number = 0
            while not over.is_set():
                number += 1
                try:
                    store.set(f"beat/{self.rank}", str(number))
                except RuntimeError:
                    return  # the leader is gone, which whoever asks it something is told
                over.wait(_BEAT)

        thread = threading.Thread(target=beat, name="kedit-bench-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=_PARTING)
            if not self.first:
                with suppress(RuntimeError):
                    store.set(f"bye/{self.rank}", "")

    def _end(self, text: str) -> None:
        if self._store is None:
            return
        with suppress(KeditError):
            self.say(_ENDED, text)
        until = time.monotonic() + _PARTING
        for rank in self.others:
            with suppress(RuntimeError, KeditError):
                while not self._store.check([f"bye/{rank}"]) and time.monotonic() < until:
                    self._check(rank)
                    time.sleep(_POLL)

    def _here(self) -> Any:
        if self._store is None:
            raise LostError("there is no other process to hear from")
        return self._store

    @contextmanager
    def _leader_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch raises when the other end of its store is closed
            raise self._lost(0) from error

    def _check(self, rank: int) -> None:
        """Raise LostError when a process gives no sign of life."""
        with self._leader_there():
            store = self._here()
            now = time.monotonic()
            beat = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
            known = self._beats.get(rank)
            if known is None or known[0] != beat:
                self._beats[rank] = known = (beat, now)
            who = store.get(f"who/{rank}").decode() if store.check([f"who/{rank}"]) else ""
        host, _, pid = who.partition(" ")
        if (host == socket.gethostname() and _dead(int(pid))) or now - known[1] > self.patience:
            raise self._lost(rank, who)

    def _lost(self, rank: int, who: str = "") -> LostError:
        named = f" ({who.replace(' ', ', process ')})" if who else ""
        return LostError(
            f"process {rank} of {self.count}{named} is gone; what is done is kept, so give the same command again"
        )


@contextmanager
def company(patience: float = PATIENCE) -> Iterator[Company]:
    """The processes that a launcher started for this benchmark; this one alone when it started none.

    Args:
        patience: also how long the processes wait for one another at first, in seconds.

    Raises:
        LostError: not all of them came.
        InputError: torch.distributed is set up already, so that methods would take turns which this cannot know.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise InputError(
            "torch.distributed is set up already; start the benchmark before it is (`kedit bench` under torchrun)"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not dist.is_available():
        yield Company()
        return
    found = _met(patience)
    with found.living():
        yield found


def _dead(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def own_device(asked: str | None) -> str | None:
    """The device that a model goes to: of several processes, each has a GPU of its own where ``cuda`` is asked for."""
    local = os.environ.get("LOCAL_RANK")
    if asked != "cuda" or local is None or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return asked
    return f"cuda:{int(local) % max(1, torch.cuda.device_count())}"


def _met(patience: float) -> Company:
    """Meet the other processes, and agree on a store.

    The group is given up at once: methods that find one take turns in it, and here only some of them may run.
    """
    wait = timedelta(seconds=patience)
    try:
        dist.init_process_group("gloo", timeout=wait)
        try:
            rank, count = dist.get_rank(), dist.get_world_size()
            host = os.environ.get("MASTER_ADDR", "localhost")
            store: Any = None
            told: list[Any] = [None]
            if rank == 0:
                store = _store(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
                told = [store.port]
            dist.broadcast_object_list(told, src=0)
            if rank != 0:
                store = _store(host, told[0], is_master=False, wait_for_workers=False, timeout=wait)
            dist.barrier()
        finally:
            dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise LostError(f"the processes of the launcher did not all meet ({reason}); start them again") from error
    return Company(rank, count, patience, store)
