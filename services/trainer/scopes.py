"""Which scopes of a key each call of the trainer needs; a call that is not here needs admin."""

from services.shared import files_http
from services.shared.auth import Scope, Scopes

_JOB = "/v1/fine_tuning/jobs/{fine_tuning_job_id}"

SCOPES: Scopes = {
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
