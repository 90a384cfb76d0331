"""Statements: what a contributor is shown of a run, and the proof that it is what the run gave.

Everyone who brought a document or has a share in one gets a statement for every period, also for nothing. Each
statement is a leaf of one Merkle tree; the signed checkpoint of the run binds that tree to the run's manifest.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from attribution.agreement import Ablation
from attribution.runs.adopted import NEW_RUNS, Rules
from attribution.runs.tally import LineKey, Tally
from attribution.runs.transparency import (
    Checkpoint,
    CheckpointError,
    Signer,
    decode_proof,
    encode_proof,
    fingerprint,
    open_note,
)
from metering import formats, merkle
from metering.money import MAX_TOTAL, Currency, MoneyError

FORMAT: Final = 1
"""The format of manifests and statements."""
_SUMS: Final = ("charged", "cost", "platform", "credited", "residual")


def canonical(value: Any) -> bytes:
    """The bytes of a JSON value that are hashed and signed: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def run_id(manifest: dict[str, Any]) -> str:
    """The run's id: a hash of everything it was computed from and gave, so equal runs have equal ids."""
    return f"run-{manifest['period']}-{hashlib.sha256(canonical(manifest)).hexdigest()[:32]}"


class Issue:
    """The manifest and the statements of one run."""

    def __init__(
        self,
        *,
        period: str,
        input_root: str,
        tally: Tally,
        credits_sha256: str,
        outcomes: int,
        contributors: Iterable[str],
        currency: Currency,
        default_policy: int,
        rules: Rules = NEW_RUNS,
        ablation: Ablation = Ablation(),  # noqa: B008 # immutable
    ) -> None:
        """The documents of a run that was computed by ``rules``.

        ``outcomes`` is how many queries have one; ``contributors`` are those who get a statement even for nothing.
        Amounts become decimal strings.
        """
        self._currency = currency
        credited, totals = tally.credited_to(), tally.totals
        self.contributors = sorted(set(contributors) | set(credited))
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "period": period,
            "input_root": input_root,
            "policy_version": tally.policy_version or default_policy,
            "algorithms": rules.names,
            "value_functions": dict(sorted(tally.value_functions.items())),
            "currency": {"code": currency.code, "scale": currency.scale},
            "records": totals.records,
            "outcomes": outcomes,
            **{name: currency.amount(getattr(totals, name)) for name in _SUMS},
            "credits_sha256": credits_sha256,
            "ablation": ablation.summary(),
        }
        self.run_id = run_id(self.manifest)
        lines, earned = _lines(tally, currency), tally.earned_by()
        self.statements = [
            {
                "format": FORMAT,
                "contributor": name,
                "period": period,
                "run_id": self.run_id,
                "credited": currency.amount(credited.get(name, 0)),
                "period_totals": {sum_: self.manifest[sum_] for sum_ in _SUMS},
                "documents": lines.get(name, []),
                "offset": currency.amount(credited.get(name, 0) - earned.get(name, 0)),
                "ablation": ablation.of(name),
            }
            for name in self.contributors
        ]

    def bundles(self, signer: Signer) -> tuple[str, list[dict[str, Any]]]:
        """The signed checkpoint, and for each statement the bundle that can be verified offline."""
        tree = merkle.Tree([merkle.leaf_hash(canonical(statement)) for statement in self.statements])
        digest = hashlib.sha256(canonical(self.manifest)).hexdigest()
        checkpoint = signer.sign(Checkpoint(f"{signer.name}/statements", len(tree), tree.root, (f"manifest {digest}",)))
        bundles = [
            {
                "statement": statement,
                "run": self.manifest,
                "proof": {
                    "index": index,
                    "size": len(tree),
                    "path": encode_proof(tree.inclusion_proof(index)),
                },
                "checkpoint": checkpoint,
                "public_key": signer.public_key,
            }
            for index, statement in enumerate(self.statements)
        ]
        return checkpoint, bundles


def _lines(tally: Tally, currency: Currency) -> dict[str, list[dict[str, Any]]]:
    """For each contributor, a line per document, role and policy version, in that order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, units in sorted(tally.credited.items()):
        contributor, document, role, version = key
        line = tally.lines[LineKey(document, version)]
        moved = tally.outcomes.get(key, 0)
        found.setdefault(contributor, []).append(
            {
                "document": document,
                "role": role,
                "policy_version": version,
                "retrieved": line.retrieved,
                "cited": line.cited,
                "pool": currency.amount(line.pool),
                "residual": currency.amount(line.residual),
                "platform": currency.amount(line.platform),
                "outcomes": currency.amount(moved),
                "credited": currency.amount(units + moved),
            }
        )
    return found


def verify(bundle: Any, trusted_key: str | None = None) -> list[dict[str, Any]]:
    """Check a statement bundle with a public key alone: ``trusted_key``, or else the one it carries.

    It is checked by the rules of its format; of a format that this version does not know it says that, and no more.

    Returns:
        The checks, each ``{"name", "ok", "detail"}``; the statement is valid if all are ok.
    """
    checks: list[dict[str, Any]] = []

    def check(name: str, ok: bool, detail: str) -> None:  # noqa: FBT001 # a check is about a truth value
        checks.append({"name": name, "ok": ok, "detail": detail})

    try:
        statement, manifest, proof = bundle["statement"], bundle["run"], bundle["proof"]
        for what, named in (("the run", manifest), ("the statement", statement)):
            formats.check(what, named["format"], FORMAT)
        check("format", True, f"statement and run are of format {FORMAT}")
        key = trusted_key or str(bundle["public_key"])
        checkpoint = open_note(str(bundle["checkpoint"]), key)
        path = decode_proof(proof["path"])
        index, size = int(proof["index"]), int(proof["size"])
        currency = Currency(manifest["currency"]["code"], int(manifest["currency"]["scale"]))
        check("signature", True, f"the checkpoint is signed by the key {fingerprint(key)}")
        digest = f"manifest {hashlib.sha256(canonical(manifest)).hexdigest()}"
        signed = digest in checkpoint.extensions
        check("manifest", signed, f"the run's manifest is {'' if signed else 'not '}the signed one")
        leaf = merkle.leaf_hash(canonical(statement))
        included = size == checkpoint.size and merkle.verify_inclusion(leaf, index, size, path, checkpoint.root)
        place = f"number {index + 1} of {size} under the signed root"
        check("inclusion", included, f"the statement is {place}" if included else f"this is not what is {place}")
        named = run_id(manifest)
        same = statement["run_id"] == named and statement["period"] == manifest["period"]
        check("run", same, f"the statement {'belongs' if same else 'does not belong'} to {named}")
        lines = sum(_units(currency, line["credited"]) for line in statement["documents"])
        lines += _units(currency, statement["offset"])
        said = statement["credited"]["amount"]
        adds_up = lines == _units(currency, statement["credited"])
        detail = f"the lines and the offset add up to {currency.format(lines)} {currency.code}"
        check("sum", adds_up, detail if adds_up else f"{detail}, not to {said}")
        sums = {name: _units(currency, manifest[name]) for name in _SUMS}
        balanced = sums["charged"] == sum(sums[name] for name in _SUMS[1:])
        equals = "=" if balanced else "is not"
        check("conservation", balanced, f"charged {equals} cost + platform + credited + residual")
    except formats.UnknownFormat as error:
        check("format", False, str(error))
    except CheckpointError as error:
        check("signature", False, str(error))
    except (KeyError, TypeError, ValueError, IndexError, binascii.Error, MoneyError) as error:
        check("format", False, f"not a statement bundle: {type(error).__name__} {error}")
    return checks


def _units(currency: Currency, amount: Any) -> int:
    if amount["currency"] != currency.code:
        raise MoneyError(f"an amount in {amount['currency']!r} in a statement in {currency.code}")
    return currency.parse(amount["amount"], MAX_TOTAL)
