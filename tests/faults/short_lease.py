"""``python -m tests.faults.short_lease``: the command line, with a lease of a second."""

from __future__ import annotations

from unittest.mock import patch

from serving.cli import entry

if __name__ == "__main__":
    with patch("serving.store.leases.LEASE_MS", 1_000), patch("serving.store.leases._RENEW_SECONDS", 0.2):
        entry.main()
