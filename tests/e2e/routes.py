"""Every route, with a request that its role may make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

QUESTION = {"question": "How much honey does a hive on Osk Island give?"}
CHAT = {"model": "patronage-extractive", "messages": [{"role": "user", "content": QUESTION["question"]}]}
REFUND = {"amount": "0.01", "reference": "roles", "reason": "roles"}
CORRECTION = {"debit": "bank", "credit": "residual", **REFUND}
PERIOD = "2020-02"
ASYNC = {"prefer": "respond-async"}
ROLES = ("customer", "contributor", "operator")


@dataclass(frozen=True)
class Route:
    """A route of the contract, a request that its role may make, and the statuses that this can have.

    The role ``any`` is everybody with a key.
    """

    role: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    statuses: tuple[int, ...] = (200,)
    headers: dict[str, str] = field(default_factory=dict)


ROUTES = (
    Route("customer", "POST", "/v1/query", QUESTION),
    Route("customer", "POST", "/v1/chat/completions", CHAT),
    Route("customer", "POST", "/v1/responses", {"model": "patronage-extractive", "input": QUESTION["question"]}),
    Route("customer", "POST", "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "honey"}),
    Route("customer", "GET", "/v1/models"),
    Route("customer", "GET", "/v1/models/patronage-extractive"),
    Route("customer", "GET", "/v1/account"),
    Route("customer", "GET", "/v1/account/alert"),
    Route("customer", "PUT", "/v1/account/alert", {"below": "default"}),
    Route("customer", "GET", "/v1/usage"),
    Route("customer", "GET", "/v1/receipts/{receipt}"),
    Route("customer", "POST", "/v1/receipts/{receipt}/outcome", {"rating": 0.5}),
    Route("contributor", "POST", "/v1/documents", {"id": "mary/roles", "text": "A text about roles."}, (200, 201)),
    Route("contributor", "GET", "/v1/documents"),
    Route("contributor", "GET", "/v1/documents/mary/light"),
    Route("contributor", "DELETE", "/v1/documents/mary/withdrawn"),
    Route("contributor", "POST", "/v1/documents", {"id": "mary/later", "text": "A text."}, (202,), ASYNC),
    Route("any", "GET", "/v1/jobs"),
    Route("any", "GET", "/v1/jobs/none", None, (404,)),
    Route("any", "DELETE", "/v1/jobs/none", None, (404,)),
    Route("contributor", "GET", "/v1/earnings"),
    Route("contributor", "GET", "/v1/payouts"),
    Route("contributor", "GET", "/v1/statements"),
    Route("contributor", "GET", "/v1/statements/2019-12", None, (404,)),
    Route("operator", "GET", "/v1/admin/customers"),
    Route("operator", "POST", "/v1/admin/customers", {"name": "Someone"}, (201,)),
    Route("operator", "POST", "/v1/admin/customers/{customer}/credits", {"amount": "1", "reference": "roles"}),
    Route("operator", "GET", "/v1/admin/customers/{customer}"),
    Route("operator", "PUT", "/v1/admin/customers/{customer}/credit-limit", {"amount": "0"}),
    Route("operator", "PUT", "/v1/admin/customers/{customer}/alert", {"below": "none"}),
    Route("operator", "GET", "/v1/admin/keys"),
    Route("operator", "POST", "/v1/admin/keys", {"role": "customer", "owner": "nobody"}, (404,)),
    Route("operator", "PUT", "/v1/admin/keys/none/limits", {}, (404,)),
    Route("operator", "DELETE", "/v1/admin/keys/none", None, (404,)),
    Route("operator", "GET", "/v1/admin/prices"),
    Route("operator", "POST", "/v1/admin/prices", {"models": {}}, (422,)),
    Route("operator", "POST", "/v1/admin/customers/{customer}/refunds", REFUND),
    Route("operator", "GET", "/v1/admin/ledger"),
    Route("operator", "POST", "/v1/admin/ledger/corrections", CORRECTION, (201,)),
    Route("operator", "GET", "/v1/admin/payouts"),
    Route("operator", "POST", "/v1/admin/payouts", {"contributor": "mary", "reference": "roles"}, (201, 409)),
    Route("operator", "POST", "/v1/admin/payouts/of/nobody/settle", None, (404,)),
    Route("operator", "POST", "/v1/admin/payouts/of/nobody/cancel", {"reason": "roles"}, (404,)),
    Route("operator", "GET", "/v1/admin/contributors"),
    Route("operator", "POST", "/v1/admin/contributors", {"name": "Someone"}, (201,)),
    Route("operator", "GET", "/v1/admin/policy"),
    Route("operator", "POST", "/v1/admin/policy", {"data_share_ppm": 500_000}, (201,)),
    Route("operator", "GET", f"/v1/admin/periods/{PERIOD}/preview"),
    Route("operator", "POST", f"/v1/admin/periods/{PERIOD}/close", None, (200, 409)),
)
OPEN = (
    "/",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v1/checkpoint",
    "/v1/checkpoint/consistency?from=0",
)
