"""Metering: who pays, what for, and the proof of it.

Pure modules (no Redis, no SQL): ``money``, ``records``, ``merkle``, ``pricing``, ``meter``.
Adapters: ``redis_meter`` with its Lua scripts, ``redis_server``, ``usage_log``, ``drain``, ``ledger``.
"""
