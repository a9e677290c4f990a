"""Which scopes of a key each call of the trainer needs; a call that is not here needs admin."""

from services.shared import files_http
from services.shared.auth import Scope, Scopes
from services.shared.rpcs import TRAINER_SCOPES

_JOB = "/v1/fine_tuning/jobs/{fine_tuning_job_id}"

SCOPES: Scopes = {
    **TRAINER_SCOPES,
    "GET /v1/fine_tuning/jobs": Scope.TRAIN,
    "POST /v1/fine_tuning/jobs": Scope.TRAIN,
    f"GET {_JOB}": Scope.TRAIN,
    f"GET {_JOB}/events": Scope.TRAIN,
    f"GET {_JOB}/checkpoints": Scope.TRAIN,
    f"POST {_JOB}/cancel": Scope.TRAIN,
    f"POST {_JOB}/pause": Scope.TRAIN,
    f"POST {_JOB}/resume": Scope.TRAIN,
    **files_http.SCOPES,
}
