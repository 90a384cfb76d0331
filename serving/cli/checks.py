"""Commands that prove and examine: audit, verify, doctor."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from attribution.runs.proofs import verify_growth, verify_receipt
from attribution.runs.statements import verify as verify_bundle
from serving.assembly import open_books, open_metering
from serving.terminal.console import CommandError, Out, current
from serving.upkeep import doctor as examination
from serving.upkeep.audit import audit as audit_books

_STATEMENT_BYTES_MAX = 200_000_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("audit")(audit)
    app.command("verify", epilog="Example: patronage verify statement.json")(verify)
    app.command("doctor")(doctor)


def audit() -> None:
    """Recompute every invariant from everything that is stored; exit 1 if one does not hold."""
    settings, out = current()
    with open_books(settings) as books, out.progress("auditing") as bar:
        task = bar.add_task("auditing", total=None, note="")

        async def run() -> list[dict[str, Any]]:
            async with open_metering(books) as metering:
                return await audit_books(books, metering, lambda step: bar.update(task, note=step))

        checks = asyncio.run(run())
    _show(out, checks, {"balanced": all(check["ok"] for check in checks), "checks": checks})
    if not all(check["ok"] for check in checks):
        raise CommandError("the books do not balance; docs/operations.md says what to do about each check")


def verify(
    file: Annotated[Path, typer.Argument(help="A statement, a receipt or a proof of consistency, in JSON.")],
    public_key: Annotated[
        str | None, typer.Option(help="The operator's public key in base64, if you know it from elsewhere.")
    ] = None,
    since: Annotated[
        Path | None, typer.Option(help="The earlier checkpoint, in JSON, that a proof of consistency begins from.")
    ] = None,
) -> None:
    """Check a statement, a receipt or the log's consistency offline, with nothing but the operator's public key."""
    _, out = current()
    bundle = _read(file)
    if since is not None:
        what, checks = "proof", verify_growth(bundle, _read(since), public_key)
    elif isinstance(bundle, dict) and "sources" in bundle:
        what, checks = "receipt", verify_receipt(bundle, public_key)
    else:
        what, checks = "statement", verify_bundle(bundle, public_key)
    valid = all(check["ok"] for check in checks)
    _show(out, checks, {"valid": valid, "checks": checks})
    if not valid:
        raise CommandError(f"the {what} in {file} is not valid")


def _read(file: Path) -> Any:
    if file.stat().st_size > _STATEMENT_BYTES_MAX:
        raise CommandError(f"{file} is larger than any statement")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file} is not a statement in JSON") from error


def doctor() -> None:
    """What was found on this machine, what is missing, and how to get it."""
    settings, out = current()
    found = examination.examine(settings)
    if not out.result(found):
        rows = [
            ("ok" if item["ok"] else "MISSING", item["name"], item["found"], item["advice"]) for item in found["checks"]
        ]
        out.table(["", "part", "found", "to do"], rows)
    if not found["healthy"]:
        raise CommandError("something is missing; see the last column")


def _show(out: Out, checks: list[dict[str, Any]], result: dict[str, Any]) -> None:
    if not out.result(result):
        out.table(
            ["", "check", "detail"],
            [("ok" if each["ok"] else "FAILED", each["name"], each["detail"]) for each in checks],
        )
