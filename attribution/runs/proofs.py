"""Proofs that outsiders check offline: that a query's record is in a run, and that the log of runs only ever grew."""

from __future__ import annotations

import binascii
import json
from typing import Any, Final

from attribution.runs import statements
from attribution.runs.adopted import Rules, UnknownRule
from attribution.runs.inputs import Hour
from attribution.runs.statements import canonical
from attribution.runs.transparency import CheckpointError, decode_proof, fingerprint, open_note
from metering import formats, merkle, records

FORMAT: Final = 1
"""The format of receipts. Those that do not say theirs have format 1."""

Checks = list[dict[str, Any]]
"""Each ``{"name", "ok", "detail"}``."""

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, binascii.Error)


def verify_receipt(receipt: Any, trusted_key: str | None = None) -> Checks:
    """Check that the record of a receipt is in its period's run, and the run in the signed log.

    Args:
        receipt: what ``GET /v1/receipts/{id}`` gives after the close.
        trusted_key: the operator's public key; without it, the one that the receipt carries.
    """
    checks: Checks = []
    try:
        if "inclusion" not in receipt:
            _add(checks, "inclusion", False, "it has no proof yet: fetch the receipt again when its month is closed")
            return checks
        inclusion = receipt["inclusion"]
        log, hour, manifest = inclusion["log"], inclusion["hour"], inclusion["run"]
        content = str(inclusion["record"]["content"])
        formats.check("the receipt", receipt.get("format", 1), FORMAT)
        formats.check("the run", manifest["format"], statements.FORMAT)
        formats.check("the record", json.loads(content)["format"], records.FORMAT)
        Rules.of(manifest["algorithms"])
        key = trusted_key or str(log["public_key"])
        checkpoint = open_note(str(log["checkpoint"]), key)
        _add(checks, "signature", True, f"the checkpoint of {checkpoint.size} runs is signed by {fingerprint(key)}")
        leaf = merkle.leaf_hash(canonical(manifest))
        there = merkle.verify_inclusion(
            leaf, int(log["index"]), checkpoint.size, decode_proof(log["path"]), checkpoint.root
        )
        place = f"number {int(log['index']) + 1} of the log"
        _add(checks, "log", there, f"the run of {manifest['period']} {_is(there)} {place}")
        found = Hour(int(hour["number"]), int(hour["records"]), bytes.fromhex(hour["root"]))
        root = bytes.fromhex(manifest["input_root"])
        path = decode_proof(hour["path"])
        there = merkle.verify_inclusion(found.leaf(), int(hour["index"]), int(hour["size"]), path, root)
        _add(checks, "hour", there, f"the hour {hour['hour']} {_is(there)} in the input of the run")
        path = decode_proof(inclusion["record"]["path"])
        leaf, index = merkle.leaf_hash(content.encode()), int(inclusion["record"]["index"])
        there = merkle.verify_inclusion(leaf, index, found.records, path, found.root)
        _add(checks, "record", there, f"the record {_is(there)} number {index + 1} of the {found.records} of that hour")
        same = json.loads(content)["id"] == receipt["id"]
        _add(checks, "receipt", same, f"the record {_is(same)} that of receipt {receipt['id']}")
    except (formats.UnknownFormat, UnknownRule) as error:
        _add(checks, "format", False, str(error))
    except CheckpointError as error:
        _add(checks, "signature", False, str(error))
    except _MALFORMED as error:
        _add(checks, "format", False, f"not a receipt with a proof: {type(error).__name__} {error}")
    return checks


def verify_growth(answer: Any, before: Any, trusted_key: str | None = None) -> Checks:
    """Check that the log of runs at an earlier checkpoint is the beginning of the log now.

    Args:
        answer: what ``GET /v1/checkpoint/consistency`` gives.
        before: what ``GET /v1/checkpoint`` gave then.
        trusted_key: the operator's public key; without it, the one that the earlier checkpoint came with.
    """
    checks: Checks = []
    try:
        key = trusted_key or str(before["public_key"])
        old, new = open_note(str(before["checkpoint"]), key), open_note(str(answer["checkpoint"]), key)
        _add(checks, "signature", True, f"both checkpoints are signed by {fingerprint(key)}")
        same = old.origin == new.origin
        _add(checks, "origin", same, f"they are of {old.origin} and {new.origin}")
        path = decode_proof(answer["path"])
        grew = merkle.verify_consistency(old.size, old.root, new.size, new.root, path)
        begin = "begin" if grew else "do not begin"
        _add(checks, "consistency", grew, f"the {new.size} runs {begin} with the {old.size} of then")
    except CheckpointError as error:
        _add(checks, "signature", False, str(error))
    except _MALFORMED as error:
        _add(checks, "format", False, f"not a proof of consistency: {type(error).__name__} {error}")
    return checks


def _is(so: bool) -> str:  # noqa: FBT001 # a check is about a truth value
    return "is" if so else "is not"


def _add(checks: Checks, name: str, ok: bool, detail: str) -> None:  # noqa: FBT001 # a check is about a truth value
    checks.append({"name": name, "ok": ok, "detail": detail})
