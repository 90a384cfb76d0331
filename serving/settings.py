"""Settings: the only reader of the environment.

Each is an environment variable with the prefix ``PATRONAGE_``. ``docs/reference/settings.md`` is made from this class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
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
        description="Redis server, such as `redis://host:6379/0`, or Redis Cluster, by some of its nodes, such as "
        "`redis+cluster://host:port,host:port`; `rediss://` and `rediss+cluster://` with TLS, `unix://` for a socket. "
        "Without it: an embedded one, with its data in the data directory.",
    )
    redis_ack: Literal["none", "aof"] = Field(
        default="none",
        description="When a charge counts as acknowledged: `none`, when Redis has it; `aof`, when Redis has it synced "
        "to its disk too (WAITAOF, Redis 7.2 or newer).",
    )
    redis_fsync: Literal["everysec", "always"] = Field(
        default="always",
        description="How often the embedded Redis syncs to disk: with `always` nothing that was acknowledged is lost, "
        "with `everysec` up to two seconds may be, if the machine fails or Redis is killed.",
    )
    redis_seconds: float = Field(
        default=3.0,
        ge=0.2,
        le=60,
        description="How long Redis may take to reply, in seconds. After it a query is answered 503, and its hold is "
        "given up as soon as Redis is back.",
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
    replay_bytes: int = Field(
        default=65_536,
        ge=0,
        le=16_000_000,
        description="The largest response that is kept for replays; a replay of a larger one is 422 `replay_not_kept`. "
        "Answers are smaller; many vectors are not.",
    )
    retry_seconds: int = Field(
        default=900,
        ge=0,
        le=86_400,
        description="How long an answer is kept, encrypted, for the automatic retries of the `openai` client; "
        "0 keeps none, and each retry is paid.",
    )
    dispute_days: int = Field(
        default=90,
        ge=1,
        le=3_650,
        description="How long the text of a query that is drawn for the audit by ablation is kept, encrypted.",
    )
    likelihood_model: str | None = Field(
        default=None,
        description="Causal language model of `log_likelihood/1`, for the audit by ablation, for policies that pay by "
        "it and for `patronage attribute`: the name or folder of any transformers model. Without it: the audit runs "
        "the extractive generator again, and nothing is valued by `log_likelihood/1`.",
    )
    likelihood_url: str | None = Field(
        default=None,
        description="Server of that model, compatible with vLLM, such as `http://host:8000/v1`. "
        "Without it: the model runs in the process that needs it, with torch.",
    )
    likelihood_key: str | None = Field(default=None, description="API key for that server.", repr=False)
    likelihood_batch_tokens: int = Field(
        default=16_384,
        ge=1,
        description="Tokens whose keys and values that model holds at once, or that one request to its server has.",
    )
    value_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="The longest that model may take for an answer, where a policy pays by it. An answer and its value "
        "together should take less than a hold lasts.",
    )
    drain_seconds: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How often captured records are moved from Redis to the log and the ledger.",
    )
    payout_minimum: str = Field(
        default="0", description="The least that is paid out to a contributor at once, such as `10.00`."
    )
    requests_per_minute: int = Field(
        default=0, ge=0, le=1_000_000, description="Rate limit of each API key on paid requests; 0 is none."
    )
    tokens_per_minute: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Rate limit of each API key on the tokens that its paid requests may use; 0 is none.",
    )
    concurrent_requests: int = Field(
        default=0, ge=0, le=1_000_000, description="Paid requests of each API key in progress at once; 0 is no limit."
    )
    day_cap: str | None = Field(
        default=None, description="The most that each API key may spend in a day (UTC), such as `5.00`."
    )
    month_cap: str | None = Field(
        default=None, description="The most that each API key may spend in a calendar month (UTC), such as `50.00`."
    )
    low_balance: str | None = Field(
        default=None, description="What is left on an account when its low balance is signalled, such as `5.00`."
    )
    webhook_private_hosts: bool = Field(
        default=False,
        description="Whether webhooks may go to loopback, private and other addresses that are not public.",
    )
    concurrent_queries: int = Field(
        default=256,
        ge=1,
        description="Queries in progress at once in one process; beyond it the answer is 503 `overloaded`. "
        "One customer may have as many as it leaves free for others: half of them, where it is alone.",
    )
    unpaid_per_second: float = Field(
        default=25.0,
        ge=0,
        le=1_000_000,
        description="How many paid calls of one customer may cost it nothing in a second, replays and refusals, beside "
        "one for each that is paid. More wait, up to 15 s, and are 429 `rate_limited` beyond; 0 is no limit.",
    )
    calls_per_second: float = Field(
        default=50.0,
        ge=0,
        le=1_000_000,
        description="How many calls that are never paid (reads, uploads, administration) of one key's owner, or of all "
        "without a key at one address, begin in a second. More wait, as above; 0 is no limit.",
    )
    concurrent_uploads: int = Field(
        default=16,
        ge=1,
        description="Documents that one contributor may be uploading at once; beyond it the answer is 503 "
        "`overloaded`.",
    )
    job_chars: int = Field(
        default=250_000,
        ge=1,
        description="A document of more characters is taken in by a job: the answer to its upload is 202, with where "
        "to follow it.",
    )
    waiting_chars: int = Field(
        default=20_000_000,
        ge=10_000_000,
        description="The most text that one contributor may have in jobs that have not ended, in characters; beyond it "
        "the answer is 503 `overloaded`. At least one document of the largest size.",
    )
    job_days: int = Field(default=7, ge=1, le=3_650, description="How long a job that has ended can be looked up.")
    embedding_chars: int = Field(
        default=1_500_000,
        ge=1,
        description="The most text that one call may have embedded, in characters; more is 413 `input_too_long`.",
    )
    shutdown_grace_seconds: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="After SIGTERM, how long everything is still answered while readiness is already false.",
    )
    finish_seconds: int = Field(
        default=20,
        ge=1,
        le=3_600,
        description="After that, how long answers in progress may still take; then they end, and what was delivered "
        "is paid.",
    )
    answer_seconds: float = Field(
        default=120.0,
        gt=0,
        le=3_600,
        description="The longest that the model may take for an answer; at most as long as a hold lasts.",
    )
    answer_tokens: int = Field(
        default=1_024, ge=1, le=131_072, description="The longest answer of the upstream model, in tokens."
    )
    upstream_url: str | None = Field(
        default=None,
        description="An OpenAI-compatible server whose model writes answers, such as `http://host:8000/v1`. "
        "Without it: extractive answers only.",
    )
    upstream_key: SecretStr | None = Field(default=None, description="The API key for the upstream server.")
    upstream_model: str | None = Field(
        default=None,
        description="The model's name at the upstream server; it is sold under the same name, at its price in the "
        "price book.",
    )
    upstream_context_chars: int = Field(
        default=12_000, ge=1_000, le=1_000_000, description="The most characters of passages in the upstream's prompt."
    )
    conversation_chars: int = Field(
        default=32_000, ge=1, le=1_000_000, description="The longest conversation that a model reads, in characters."
    )
    question_chars: int = Field(default=8_000, ge=1, description="The longest question, in characters.")
    body_bytes: int = Field(
        default=16_000_000,
        ge=1_000,
        description="The largest request body, in bytes: of documents and embeddings. Others may have 1,000,000, and "
        "conversations twelve more for each character that they may have.",
    )
    connections_per_address: int = Field(
        default=1_024,
        ge=1,
        description="Open connections from one address (of IPv6: from one /64). Beyond it the oldest idle one is "
        "closed; if all are busy, the new one is refused with 429.",
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses or networks of proxies, with commas between them, such as `10.0.0.5,192.168.0.0/16`: "
        "their connections are many people's and are not counted.",
    )
    head_seconds: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="The longest from a new connection, or a request's first byte, to the end of its headers.",
    )
    body_seconds: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="The longest silence between two parts of a request's body, and so often it is looked at whether "
        "a response is read.",
    )
    body_bytes_per_second: int = Field(
        default=500,
        ge=1,
        description="The least rate at which a request's body comes: all of it may take the longest silence, and a "
        "second for so many bytes. What is slower is 408 `request_timeout`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe log line that is written."
    )

    @property
    def embedding_model(self) -> str:
        """The name under which the embedding model is sold: of a folder, its last part."""
        return self.embedder.rstrip("/").rpartition("/")[2]
