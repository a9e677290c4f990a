"""Jobs as their owners see and change them, in a database: what survives a restart.

Every function is synchronous and short; the service calls them in a thread. Where a `tenant` is
asked for, None is an operator, who sees all of them. What runs them is in `leases.py`.
"""

import time
from collections.abc import Mapping
from typing import cast

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.exc import IntegrityError

from services.shared.database import Database, fetch_page
from services.shared.errors import AlreadyExists, Overloaded, WrongState
from services.shared.paging import Page, Paging
from services.trainer.jobs.rows import (
    ENDED,
    STATES,
    Job,
    JobRow,
    JobTagRow,
    State,
    Wish,
    find_row,
    to_job,
)


class Jobs:
    """All jobs.

    Args:
        database: holds their tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_by_key(self, key: str, request_digest: str) -> Job | None:
        """Find the job that an idempotency key has made.

        Raises:
            AlreadyExists: the key was used with another request.
        """
        with self._database.reading() as session:
            row = session.scalar(select(JobRow).where(JobRow.idempotency_key == key))
            if row is None:
                return None
            if row.request_digest != request_digest:
                raise AlreadyExists(
                    "this idempotency_key was used with a different request; use a new one",
                    "idempotency_key",
                )
            return to_job(row)

    def check_room(self, max_queued: int) -> None:
        """Refuse one more job when too many wait.

        Raises:
            Overloaded: try again later.
        """
        if self.count()["queued"] >= max_queued:
            raise Overloaded(f"{max_queued} jobs are waiting already; try again later")

    def add(self, job: Job, key: str | None, request_digest: str) -> Job:
        """Add a queued job, or return the one that the key has made meanwhile.

        Raises:
            AlreadyExists: the key was used with another request.
        """
        now = time.time()
        row = JobRow(
            id=job.id, idempotency_key=key, request_digest=request_digest, state="queued",
            created_at=now, queued_at=now, error="", base_model=job.base_model,
            model_id=job.model_id, hyperparameters=job.hyperparameters, tenant=job.tenant,
            owner=job.owner, training_file=job.training_file, validation_file=job.validation_file,
            tags=[JobTagRow(key=name, value=value) for name, value in job.metadata.items()],
        )  # fmt: skip
        try:
            with self._database.transaction() as session:
                session.add(row)
        except IntegrityError:
            if key and (found := self.find_by_key(key, request_digest)):
                return found
            raise
        return to_job(row)

    def get(self, job_id: str, tenant: str | None = None) -> Job:
        """Return a job.

        Raises:
            NotFound: no such job, or it is another tenant's.
        """
        with self._database.reading() as session:
            return to_job(find_row(session, job_id, tenant))

    def find_model(self, model_id: str, tenant: str | None) -> Job | None:
        """Return the job that has made a model; None: no job of the caller's has."""
        with self._database.reading() as session:
            query = select(JobRow).where(JobRow.model_id == model_id, JobRow.state == "succeeded")
            row = session.scalar(query.where(*_own(tenant)).limit(1))
            return None if row is None else to_job(row)

    def page(
        self,
        paging: Paging,
        tenant: str | None = None,
        metadata: Mapping[str, str] | None = None,
        without_metadata: bool = False,
    ) -> Page[Job]:
        """Return a page of jobs.

        Args:
            paging: which page.
            tenant: whose.
            metadata: only those that have all of these pairs.
            without_metadata: only those that have none.

        Raises:
            NotFound: no job `paging.after` or `paging.before`.
        """
        query = select(JobRow).where(*_own(tenant))
        for key, value in (metadata or {}).items():
            query = query.where(
                JobRow.tags.any((JobTagRow.key == key) & (JobTagRow.value == value))
            )
        if without_metadata:
            query = query.where(~JobRow.tags.any())
        with self._database.reading() as session:
            after, before = (
                find_row(session, id_, tenant, param).number if id_ else None
                for id_, param in ((paging.after, "after"), (paging.before, "before"))
            )
            page = fetch_page(session, query, JobRow.number, paging, after, before)
            return Page([to_job(row) for row in page.items], page.has_more)

    def states(self) -> dict[str, State]:
        """Return the state of every job, by id, in the order of their creation."""
        with self._database.reading() as session:
            rows = session.execute(select(JobRow.id, JobRow.state).order_by(JobRow.number))
            return {job_id: cast(State, state) for job_id, state in rows}

    def wish(self, job_id: str, wish: Wish, tenant: str | None = None) -> Job:
        """Pause or cancel a job that waits, at once; of one that runs, note that it is wanted.

        Returns:
            The job as it stands then; in the wanted state, ended, or running.

        Raises:
            NotFound: no such job.
        """
        with self._database.transaction() as session:
            row = find_row(session, job_id, tenant)
            if row.state == "running":
                # Cancelling is for good.
                row.wish = row.wish if row.wish == "cancelled" else wish
            elif row.state == "queued" or (row.state == "paused" and wish == "cancelled"):
                row.state = wish
                row.finished_at = time.time() if wish == "cancelled" else None
            return to_job(row)

    def resume(self, job_id: str, tenant: str | None = None) -> Job:
        """Queue a paused job again; harmless if it waits or runs.

        Raises:
            NotFound: no such job.
            WrongState: it has ended, or is just about to.
        """
        with self._database.transaction() as session:
            row = find_row(session, job_id, tenant)
            if row.state in ENDED or row.wish == "cancelled":
                raise WrongState(f"only a paused job can be resumed; it has {row.state}", "id")
            row.wish = None
            if row.state == "paused":
                row.state, row.queued_at = "queued", time.time()
            return to_job(row)

    def count(self) -> dict[State, int]:
        """Return how many jobs are in each state."""
        with self._database.reading() as session:
            query = select(JobRow.state, func.count()).group_by(JobRow.state)
            found = dict(session.execute(query).all())
            return {state: found.get(state, 0) for state in STATES}


def _own(tenant: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if tenant is None else (JobRow.tenant == tenant,)
