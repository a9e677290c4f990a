"""Who runs which job: several services may share a database and a folder, and no job runs twice.

A service claims a job for a bounded time, and says again and again that it is still at it. A job
whose time is over another one takes. A service that cannot say so in time, or finds that the job
is no longer its own, stops its process before the time is over; and the process, which holds the
job's lock (`lock.py`), ends by itself when it hears nothing of its service.

Time is the database's where it has a clock of its own, so that machines need not agree.
Everything is synchronous and short; callers run it in a thread.
"""

import time
from collections.abc import Collection, Sequence

from sqlalchemy import and_, func, or_, select, text
from sqlalchemy.orm import Session

from services.shared.database import Database
from services.trainer.jobs.rows import ENDED, Job, JobRow, State, find_row, to_job


class Leases:
    """The jobs that one service runs.

    Args:
        database: holds their tables.
        service: the name of this service, no other's.
        lease_s: how long a job stays its own after it said so.
        max_per_owner: jobs of one owner that may run at the same time, at all services.
    """

    def __init__(
        self, database: Database, service: str, lease_s: float, max_per_owner: int
    ) -> None:
        self._database = database
        self._service = service
        self._lease_s = lease_s
        self._max_per_owner = max_per_owner

    def claim(self, without: Collection[str]) -> Job | None:
        """Take the job whose turn it is and call it running; None: there is none to take.

        First those that ran and were left: by a service that is gone, or by this one before a
        restart. Of those that wait, the oldest one of the owner with the fewest running jobs;
        among several owners, of the one that was served longest ago.

        Args:
            without: ids of jobs that this service is at.
        """
        with self._database.transaction() as session:
            now = _now(session)
            is_left = or_(
                JobRow.lease_until.is_(None),
                JobRow.lease_until <= now,
                and_(JobRow.service == self._service, JobRow.id.not_in(without)),
            )
            left = select(JobRow).where(JobRow.state == "running", is_left)
            row = session.scalar(left.order_by(JobRow.number).limit(1))
            if row is not None:
                row.queued_at = None
            elif (row := self._next(session)) is None:
                return None
            row.state, row.service, row.lease_until = "running", self._service, now + self._lease_s
            row.started_at = row.started_at or time.time()
            return to_job(row)

    def _next(self, session: Session) -> JobRow | None:
        waiting: Sequence[tuple[str | None, int]] = [
            (owner, number)
            for owner, number in session.execute(
                select(JobRow.owner, func.min(JobRow.number))
                .where(JobRow.state == "queued")
                .group_by(JobRow.owner)
            )
        ]
        if not waiting:
            return None
        owners = select(
            JobRow.owner,
            func.max(JobRow.started_at),
            func.count().filter(JobRow.state == "running"),
        )
        served = {
            owner: (running, last or 0.0)
            for owner, last, running in session.execute(owners.group_by(JobRow.owner))
        }
        turns = [
            (*served[owner], number)
            for owner, number in waiting
            if served[owner][0] < self._max_per_owner
        ]
        return session.get(JobRow, min(turns)[-1]) if turns else None

    def renew(self, job_id: str) -> Job | None:
        """Say that this service is still at a job; None: it is no longer its own."""
        with self._database.transaction() as session:
            row = self._own(session, job_id)
            if row is None:
                return None
            row.lease_until = _now(session) + self._lease_s
            return to_job(row)

    def release(self, job_id: str) -> None:
        """Queue a job again whose process this service has stopped, for whoever comes next."""
        with self._database.transaction() as session:
            if (row := self._own(session, job_id)) is not None:
                row.state, row.service, row.lease_until = "queued", None, None
                row.queued_at = time.time()

    def end(
        self,
        job_id: str,
        state: State,
        error: str = "",
        error_code: str = "",
        error_param: str = "",
        result_files: Sequence[str] = (),
    ) -> bool:
        """Write how a job ended, or that it is paused; False: it is no longer this service's."""
        with self._database.transaction() as session:
            row = self._own(session, job_id)
            if row is None:
                return False
            if state == "paused" and row.wish != "paused":
                # Its owner has changed their mind while its process stopped.
                state = "cancelled" if row.wish == "cancelled" else "queued"
            row.state, row.error = state, error
            row.error_code, row.error_param = error_code, error_param
            row.finished_at = time.time() if state in ENDED else None
            row.result_files = list(result_files)
            row.service = row.lease_until = row.wish = None
            return True

    def _own(self, session: Session, job_id: str) -> JobRow | None:
        row = find_row(session, job_id)
        is_own = row.state == "running" and row.service == self._service
        return row if is_own else None


def _now(session: Session) -> float:
    """Return the Unix time by which leases run out."""
    if session.get_bind().dialect.name == "postgresql":
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)
    return time.time()
