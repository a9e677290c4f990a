"""The RPCs of the encoder and the trainer: what each needs of a key, and which tenants may call.

Two doors ask: the service's own, and the router's, which takes these calls over HTTP.
"""

from services.shared.auth import ANY_SCOPE, Scope, Scopes

ENCODER_SCOPES: Scopes = {
    "Embed": Scope.EMBED,
    "EmbedStream": Scope.EMBED,
    "Rerank": Scope.EMBED,
    "GetHead": Scope.EMBED,
    "ListModels": ANY_SCOPE,
    "GetModel": ANY_SCOPE,
    "LoadModel": Scope.ADMIN,
    "UnloadModel": Scope.ADMIN,
    "SetAlias": Scope.ADMIN,
}
ENCODER_OPEN_TO_TENANTS = frozenset({"Embed", "EmbedStream", "Rerank", "ListModels", "GetModel"})

# None is open to tenants: they name folders of the machine.
TRAINER_SCOPES: Scopes = {
    "UploadFile": Scope.TRAIN,
    "DownloadFile": Scope.TRAIN,
    "DeleteFile": Scope.TRAIN,
    "CreateJob": Scope.TRAIN,
    "GetJob": Scope.TRAIN,
    "ListJobs": Scope.TRAIN,
    "WatchJob": Scope.TRAIN,
    "CancelJob": Scope.TRAIN,
    "PauseJob": Scope.TRAIN,
    "ResumeJob": Scope.TRAIN,
    "ListCheckpoints": Scope.TRAIN,
    "ListVersions": Scope.TRAIN,
    "GetVersion": Scope.TRAIN,
    "CompareVersions": Scope.TRAIN,
    "SetVersionAlias": Scope.TRAIN,
    "DeleteVersion": Scope.TRAIN,
    "GetPromotion": Scope.TRAIN,
    "ListPromotions": Scope.TRAIN,
    # These change what is served, to everybody.
    "Promote": Scope.ADMIN,
    "CutOverPromotion": Scope.ADMIN,
    "RollBackPromotion": Scope.ADMIN,
    "FinishPromotion": Scope.ADMIN,
}


def over_http(service: str, rpc: str) -> str:
    """Name the route by which the router takes calls of an RPC, such as Embed of EncoderService."""
    return f"POST /matryoshka.v1.{service}/{rpc}"
