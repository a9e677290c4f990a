"""Which scopes of a key each call of the encoder needs; a call that is not here needs admin."""

from services.shared.auth import ANY_SCOPE, Scope, Scopes
from services.shared.rpcs import ENCODER_SCOPES

SCOPES: Scopes = {
    **ENCODER_SCOPES,
    "POST /v1/embeddings": Scope.EMBED,
    "POST /v1/rerank": Scope.EMBED,
    "GET /v1/models": ANY_SCOPE,
    "GET /v1/models/{model:path}": ANY_SCOPE,
    "GET /openapi.json": ANY_SCOPE,
}
