"""Proof and repair: the audit, the doctor, and what rebuilds."""
