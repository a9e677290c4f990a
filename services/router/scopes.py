"""Which scopes of a key each call of the router needs; a call that is not here needs admin."""

from services.shared import files_http
from services.shared.auth import Scope, Scopes
from services.shared.rpcs import ENCODER_SCOPES, TRAINER_SCOPES, over_http

_STORE = "/v1/vector_stores/{vector_store_id}"
_FILE, _BATCH = f"{_STORE}/files/{{file_id}}", f"{_STORE}/file_batches/{{batch_id}}"
# Who writes must know what is there already.
_READ = Scope.SEARCH | Scope.WRITE

# Each of these asks `caller()` whose points it may touch.
RPCS_OPEN_TO_TENANTS = frozenset(
    {
        "GetCollection", "ListCollections", "Upsert", "Delete", "SetAttributes", "Search",
        "GetRecall",
    }
)  # fmt: skip

_OWN: dict[str, Scope] = {
    "Search": Scope.SEARCH,
    "GetRecall": Scope.SEARCH,
    "ListLostSearches": Scope.ADMIN,
    "GetCalibration": Scope.SEARCH,
    "Evaluate": Scope.SEARCH,
    "GetCollection": _READ,
    "ListCollections": _READ,
    "CreateCollection": Scope.WRITE,
    "Upsert": Scope.WRITE,
    "Delete": Scope.WRITE,
    "SetAttributes": Scope.WRITE,
    "DeleteCollection": Scope.ADMIN,
    "SetCollectionAlias": Scope.ADMIN,
    "Calibrate": Scope.ADMIN,
    "ResizeCollection": Scope.ADMIN,
    "NestCollection": Scope.ADMIN,
    "CancelChange": Scope.ADMIN,
    "MigrateCollection": Scope.ADMIN,
    "CutOver": Scope.ADMIN,
    "RollBack": Scope.ADMIN,
    "FinishMigration": Scope.ADMIN,
    "GET /v1/vector_stores": _READ,
    "POST /v1/vector_stores": Scope.WRITE,
    f"GET {_STORE}": _READ,
    f"POST {_STORE}": Scope.WRITE,
    f"DELETE {_STORE}": Scope.WRITE,
    f"POST {_STORE}/search": Scope.SEARCH,
    f"GET {_STORE}/recall": Scope.SEARCH,
    f"GET {_STORE}/calibration": Scope.SEARCH,
    f"POST {_STORE}/calibrate": Scope.ADMIN,
    f"GET {_STORE}/files": _READ,
    f"POST {_STORE}/files": Scope.WRITE,
    f"GET {_FILE}": _READ,
    f"POST {_FILE}": Scope.WRITE,
    f"DELETE {_FILE}": Scope.WRITE,
    f"GET {_FILE}/content": _READ,
    f"POST {_STORE}/file_batches": Scope.WRITE,
    f"GET {_BATCH}": _READ,
    f"GET {_BATCH}/files": _READ,
    f"POST {_BATCH}/cancel": Scope.WRITE,
    **files_http.SCOPES,
}

_RPCS: dict[str, Scopes] = {
    "RouterService": {call: scope for call, scope in _OWN.items() if " " not in call},
    "EncoderService": ENCODER_SCOPES,
    "TrainerService": TRAINER_SCOPES,
}
SCOPES: Scopes = _OWN | {
    over_http(service, rpc): scope for service, rpcs in _RPCS.items() for rpc, scope in rpcs.items()
}
