"""Metering: who pays, what for, and the proof of it.

Pure (no Redis, no SQL, no file): ``money``, ``periods``, ``merkle``, ``formats``, ``stream_ids``, ``records``,
``pricing``, and the port ``meter``.
In Redis: ``redis``, with its keys, scripts, streams and server. In files: ``usage_log``, ``spool``, ``durable``.
In SQL: ``ledger`` (transfers, balances), ``usage_index`` (segments, receipts), ``credit``, ``period_gate``.
From one to the other: ``drain`` with ``registration``, ``withdrawals``. For people: ``chart``, ``journal``.
"""
