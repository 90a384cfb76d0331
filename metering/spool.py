"""The spool: captures that the meter could not take, on disk until it can.

An answer that was delivered is owed, also when Redis is gone by then. Its capture is written to a file of its own,
synced and renamed, before the customer is told of the charge; it is sent again when Redis is back, and at every
start. A capture that is sent twice charges once, so a crash between the charge and the end of the file is harmless.

A file is ``MAGIC``, the payload's length in eight bytes, its SHA-256, and the payload. One that does not hold
together is quarantined under the suffix ``.damaged``, one that the meter refuses under ``.refused``: the audit names
both, and neither is ever skipped silently.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import sqlalchemy as sa

from metering import usage_index
from metering.durable import write_durably
from metering.meter import Hold, HoldExpired, Meter, MeterUnavailable, Request
from metering.records import UsageRecord, decode_record

MAGIC: Final = b"patronage-spool/1\n"
CAPTURES_MAX: Final = 10_000
FAILURES_MAX: Final = 3
"""After so many failures a pass ends; the next begins with those that came after, for they may be on another shard."""
_PAUSE_S: Final = 0.05
_LENGTH_BYTES: Final = 8
_WAITING: Final = ".capture"
_DAMAGED: Final = ".damaged"
_REFUSED: Final = ".refused"


class SpoolFull(OSError):
    """The spool holds as many captures as it may."""


class _Damaged(ValueError):
    """A file that is not what was written."""


class Capture(msgspec.Struct, frozen=True):
    """A capture as it is spooled: what :meth:`metering.meter.Meter.capture` takes."""

    request: Request
    record: bytes
    """The canonical bytes of the usage record."""
    response: bytes


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What lies in the spool, by file name."""

    waiting: tuple[str, ...]
    damaged: tuple[str, ...]
    refused: tuple[str, ...]


class Spool:
    """The folder of captures that wait. Several processes may use it at once."""

    def __init__(self, folder: Path, engine: sa.Engine, *, captures_max: int = CAPTURES_MAX) -> None:
        """``folder`` is made with the first capture; ``engine`` knows which records are in the ledger already."""
        self._folder = folder
        self._engine = engine
        self._captures_max = captures_max
        self._waiting = len(state_of(folder).waiting)
        self._accounts: dict[str, str] = {}
        self._last_failed = ""
        self._resending = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many captures this process knows to wait."""
        return self._waiting

    def waits_for(self, account: str) -> bool:
        """Whether a capture of the account waits that this process has put here."""
        return account in self._accounts.values()

    def state(self) -> SpoolState:
        """What lies in the spool now."""
        return state_of(self._folder)

    def put(self, hold: Hold, record: UsageRecord, response: bytes = b"") -> None:
        """Keep a capture that the meter could not take. Repeating it is harmless.

        Raises:
            OSError: the spool is full or the disk refuses; nothing is kept.
        """
        if self._waiting >= self._captures_max:
            raise SpoolFull(f"the spool holds {self._captures_max} captures")
        payload = msgspec.msgpack.encode(Capture(hold.request, record.encode(), response))
        header = MAGIC + len(payload).to_bytes(_LENGTH_BYTES, "big") + hashlib.sha256(payload).digest()
        write_durably(self._path(record.id), header + payload)
        self._waiting += 1
        self._accounts[self._path(record.id).name] = hold.request.account

    def find(self, record: str) -> UsageRecord | None:
        """The usage record of a capture that waits, or None."""
        if f"{record}{_WAITING}" not in self.state().waiting:
            return None
        try:
            return decode_record(_read(self._path(record)).record)
        except (FileNotFoundError, _Damaged):
            return None

    async def resend(self, meter: Meter) -> int:
        """Send every capture that waits, and give how many were charged by this call or before.

        One process sends at a time.

        Raises:
            MeterUnavailable: the meter did not take all.
        """
        async with self._resending, self._alone():
            done, failures, known = 0, 0, list(self._accounts)
            names = (await asyncio.to_thread(self.state)).waiting
            for name in sorted(names, key=lambda name: (name <= self._last_failed, name)):
                try:
                    done += await self._send(meter, self._folder / name)
                except MeterUnavailable:
                    self._last_failed = name
                    failures += 1
                    if failures == FAILURES_MAX:
                        break
            left = (await asyncio.to_thread(self.state)).waiting
            self._waiting = len(left)
            for name in set(known).difference(left):  # by this process or by another
                del self._accounts[name]
            if failures:
                raise MeterUnavailable("charges wait in the spool")
            return done

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """While no other process sends what lies here."""
        if not self._folder.is_dir():
            yield  # nobody has anything to send
            return
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_PAUSE_S)
                else:
                    break
            yield
        finally:
            os.close(folder)

    async def _send(self, meter: Meter, path: Path) -> int:
        try:
            capture = await asyncio.to_thread(_read, path)
        except FileNotFoundError:
            return 0  # another process sent it
        except _Damaged:
            await asyncio.to_thread(_quarantine, path, _DAMAGED)
            return 0
        record = decode_record(capture.record)
        # The meter knows a capture again until ten minutes after it is in the ledger; the ledger knows it for ever.
        if not await asyncio.to_thread(self._posted, record.id):
            try:
                await meter.capture(Hold(capture.request), record, capture.response)
            except (HoldExpired, ValueError):
                await asyncio.to_thread(_quarantine, path, _REFUSED)
                return 0
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return 1

    def _posted(self, record: str) -> bool:
        with self._engine.connect() as connection:
            return bool(usage_index.known(connection, [record]))

    def _path(self, record: str) -> Path:
        return self._folder / f"{record}{_WAITING}"


def state_of(folder: Path) -> SpoolState:
    """What lies in the spool of that folder."""
    names = sorted(path.name for path in folder.glob("*.*"))
    return SpoolState(*(tuple(name for name in names if name.endswith(end)) for end in (_WAITING, _DAMAGED, _REFUSED)))


def _quarantine(path: Path, suffix: str) -> None:
    with suppress(FileNotFoundError):  # another process did
        path.replace(path.with_suffix(suffix))


def _read(path: Path) -> Capture:
    data = path.read_bytes()
    payload = data[len(MAGIC) + _LENGTH_BYTES + hashlib.sha256().digest_size :]
    header = MAGIC + len(payload).to_bytes(_LENGTH_BYTES, "big") + hashlib.sha256(payload).digest()
    if data != header + payload:
        raise _Damaged(path.name)
    return msgspec.msgpack.decode(payload, type=Capture)
