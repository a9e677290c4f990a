"""Which scopes of a key each call of the encoder needs; a call that is not here needs admin."""

from services.shared.auth import ANY_SCOPE, Scope, Scopes

SCOPES: Scopes = {
    "Embed": Scope.EMBED,
    "EmbedStream": Scope.EMBED,
    "Rerank": Scope.EMBED,
    "GetHead": Scope.EMBED,
    "ListModels": ANY_SCOPE,
    "GetModel": ANY_SCOPE,
    "LoadModel": Scope.ADMIN,
    "UnloadModel": Scope.ADMIN,
    "SetAlias": Scope.ADMIN,
    "POST /v1/embeddings": Scope.EMBED,
    "POST /v1/rerank": Scope.EMBED,
    "GET /v1/models": ANY_SCOPE,
    "GET /v1/models/{model:path}": ANY_SCOPE,
    "GET /openapi.json": ANY_SCOPE,
}
