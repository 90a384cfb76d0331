"""Settings: the only reader of the environment.

Each is an environment variable with the prefix ``PATRONAGE_``. ``docs/reference/settings.md`` is made from this class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from retrieval.embedding import PACKAGED


class Settings(BaseSettings):
    """What an operator can set."""

    model_config = SettingsConfigDict(env_prefix="PATRONAGE_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path("patronage-data"), description="Folder of everything that is stored.")
    database_url: str | None = Field(
        default=None,
        description="SQL database, such as `postgresql+psycopg://user:password@host/name`. "
        "Without it: SQLite in the data directory.",
    )
    redis_url: str | None = Field(
        default=None,
        description="Redis server, such as `redis://host:6379/0`. "
        "Without it: an embedded one, with its data in the data directory.",
    )
    redis_fsync: Literal["everysec", "always"] = Field(
        default="everysec",
        description="How often the embedded Redis syncs to disk: if the machine fails, `everysec` may lose the last "
        "second, `always` loses nothing.",
    )
    currency: str = Field(default="USD", description="ISO 4217 code; fixed when the data directory is made.")
    shards: int = Field(
        default=16, ge=1, le=100, description="Shards of the meter; fixed when the data directory is made."
    )
    embedder: str = Field(
        default=PACKAGED,
        description="Embedding model: the packaged one, or the name or folder of any sentence-transformers model.",
    )
    model_cache: Path | None = Field(
        default=None,
        description="Folder of the model files that are made from packaged weights. Without it: in the data directory.",
    )
    hold_seconds: int = Field(
        default=900, ge=5, le=86_400, description="How long a hold lasts that is neither captured nor voided."
    )
    replay_seconds: int = Field(
        default=86_400,
        ge=60,
        description="How long the response to an Idempotency-Key is kept, encrypted, for replays.",
    )
    dispute_days: int = Field(
        default=90,
        ge=1,
        le=3_650,
        description="How long the text of a query that is drawn for the audit by ablation is kept, encrypted.",
    )
    likelihood_model: str | None = Field(
        default=None,
        description="Causal language model of the audit by ablation: the name or folder of any transformers model. "
        "Without it: the extractive generator is run again.",
    )
    likelihood_url: str | None = Field(
        default=None,
        description="Server of that model, compatible with vLLM, such as `http://host:8000/v1`. "
        "Without it: the model runs in the process of the audit, with torch.",
    )
    likelihood_key: str | None = Field(default=None, description="API key for that server.", repr=False)
    likelihood_batch_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Tokens whose keys and values that model holds at once, or that one request to its server has.",
    )
    drain_seconds: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="How often captured records are moved from Redis to the log and the ledger.",
    )
    requests_per_minute: int = Field(
        default=0, ge=0, le=1_000_000, description="Rate limit of each API key on paid requests; 0 is none."
    )
    concurrent_queries: int = Field(
        default=256,
        ge=1,
        description="Queries in progress at once in one process; beyond it the answer is 503 `overloaded`.",
    )
    shutdown_grace_seconds: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="After SIGTERM, how long everything is still answered while readiness is already false.",
    )
    question_chars: int = Field(default=8_000, ge=1, description="The longest question, in characters.")
    body_bytes: int = Field(default=16_000_000, ge=1_000, description="The largest request body, in bytes.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe log line that is written."
    )
