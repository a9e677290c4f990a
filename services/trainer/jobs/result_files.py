"""What a job has made to be downloaded: the losses of its steps, its picture, its rotation.

Each is stored once among the uploaded files, as its owner's, with the purpose fine-tune-results.
"""

import csv
import io
import time
from pathlib import Path

from services.shared.files import File, Files
from services.trainer.jobs.events import Event, read_events
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import (
    METRICS,
    PLOT,
    REPORT,
    REPORT_PAGE,
    RESULT_FILE,
    ResultFiles,
    result_files_path,
)
from services.trainer.results.download import file_pieces
from services.trainer.training.checkpoint import write_atomic

PURPOSE = "fine-tune-results"


async def store_results(files: Files, job: Job, folder: Path) -> tuple[str, ...]:
    """Store what a job has made and note the ids in its folder; return them.

    Each id is noted as soon as its file is stored: a service that is killed in between stores one
    of them once more, and the first copy is never named.
    """
    path = result_files_path(folder)
    hyper = Hyperparameters.model_validate_json(job.hyperparameters)
    write_atomic(folder / METRICS, step_metrics(read_events(folder, 0)[0], hyper))
    stored = ResultFiles.read(path) or ResultFiles()
    for name in (METRICS, PLOT, REPORT_PAGE, REPORT, RESULT_FILE):
        if name in stored.ids or not (folder / name).exists():
            continue
        blob = await files.blobs.store(file_pieces(folder / name), is_bounded=False)
        stored = ResultFiles(ids=stored.ids | {name: blob.id})
        stored.write(path)
        await files.add(
            File(
                id=blob.id, filename=f"{folder.name}-{name}", purpose=PURPOSE,
                num_bytes=blob.num_bytes, created_at=time.time(), tenant=job.tenant,
            )
        )  # fmt: skip
    return tuple(stored.ids.values())


def step_metrics(events: list[Event], hyper: Hyperparameters) -> bytes:
    """Return the losses of the steps that events tell of, as CSV: in all, and of each size.

    In all is what is minimised, with the weights of the sizes; those of each size are without.
    """
    trained = [event for event in events if event.phase == "train" and event.loss]
    dims = sorted({dim for event in trained for dim in event.loss})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "train_loss", *(f"train_loss_{dim}" for dim in dims)])
    for event in trained:
        losses = [event.loss.get(dim, "") for dim in dims]
        table.writerow([event.step, hyper.total(event.loss), *losses])
    return text.getvalue().encode()
