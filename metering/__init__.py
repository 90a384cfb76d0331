"""Metering: who pays, what for, and the proof of it.

Pure modules (no Redis, no SQL): ``money``, ``records``, ``merkle``, ``pricing``, ``meter``.
Adapters: ``redis`` with its Lua scripts and its server, ``usage_log``, ``drain``, ``ledger``.
"""
