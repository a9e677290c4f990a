"""Versions of models: what each job has made, of what, and the aliases that point at them.

A version is read from its job's folder the first time it is asked for after the job's end, so that
no kill comes between the two. Everything here is synchronous and short; callers run it in a thread.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.shared.card import Quality
from services.shared.database import Base, Database, fetch_page
from services.shared.errors import InvalidRequest, NotFound, WrongState
from services.shared.paging import Page, Paging
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.jobs.jobs import Jobs
from services.trainer.jobs.retention import keep_record
from services.trainer.jobs.rows import ENDED
from services.trainer.jobs.spec import (
    MODEL,
    REPORT,
    SCORES_AFTER,
    SCORES_BEFORE,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results.evaluate import Scores
from services.trainer.results.slices import SliceQuality, compare, compare_slices
from services.trainer.results.summary import Summary

_ALIAS_LETTERS = "1 to 64 letters, digits, '-', '_' or '.'"
_MAX_ALIAS = 64


class Version(BaseModel):
    """One model, as its job has left it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    """Base and suffix."""
    version: int
    """Counts the models of one name from 1."""
    job_id: str
    created_at: float
    base_model: str
    parent: str
    """Id of the version that it was trained from; "": the base is none."""
    space_id: str
    data_digest: str
    data_name: str
    questions_digest: str
    """Of what its quality was measured on."""
    code_version: str
    hyperparameters: Hyperparameters
    quality: Quality


class _VersionRow(Base):
    __tablename__ = "model_versions"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(index=True)
    job_id: Mapped[str] = mapped_column(unique=True)
    content: Mapped[str]
    is_deleted: Mapped[bool] = mapped_column(index=True)


class _AliasRow(Base):
    __tablename__ = "model_version_aliases"

    alias: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(index=True)


class Registry:
    """All versions.

    Args:
        database: holds what is said of them.
        jobs: tells which have succeeded.
        folder: jobs' folders, under their ids.
    """

    def __init__(self, database: Database, jobs: Jobs, folder: Path) -> None:
        self._database = database
        self._jobs = jobs
        self._folder = folder

    def get(self, name: str) -> Version:
        """Return a version by id or alias.

        Raises:
            NotFound: there is none.
        """
        self._add_new()
        with self._database.reading() as session:
            return _read(_find(session, name))

    def page(self, paging: Paging, name: str = "") -> Page[Version]:
        """Return a page of versions, of one name or (empty) of all; NotFound for a cursor."""
        self._add_new()
        with self._database.reading() as session:
            query = select(_VersionRow).where(_VersionRow.is_deleted.is_(False))
            if name:
                query = query.where(_VersionRow.name == name)
            after = _find(session, paging.after).number if paging.after else None
            page = fetch_page(session, query, _VersionRow.number, paging, after, None)
            return Page([_read(row) for row in page.items], page.has_more)

    def aliases(self) -> dict[str, list[str]]:
        """Return the aliases of each version that has some, by its id."""
        with self._database.reading() as session:
            found: dict[str, list[str]] = {}
            for row in session.scalars(select(_AliasRow).order_by(_AliasRow.alias)):
                found.setdefault(row.version_id, []).append(row.alias)
            return found

    def set_alias(self, alias: str, version_id: str) -> None:
        """Point an alias at a version, or, with an empty id, at none.

        Raises:
            InvalidRequest: no alias can be called so.
            NotFound: there is no such version.
        """
        is_name = (
            alias.isascii() and alias.replace("-", "").replace("_", "").replace(".", "").isalnum()
        )
        if not is_name or len(alias) > _MAX_ALIAS:
            raise InvalidRequest(f"alias must be {_ALIAS_LETTERS}", "alias")
        self._add_new()
        with self._database.transaction() as session:
            row = session.get(_AliasRow, alias)
            if not version_id:
                if row is not None:
                    session.delete(row)
                return
            version = _find(session, version_id)
            if row is None:
                session.add(_AliasRow(alias=alias, version_id=version.id))
            else:
                row.version_id = version.id

    def delete(self, version_id: str) -> int:
        """Remove a version, and of its job all but the record: settings, events, report.

        Returns:
            Bytes that were freed.

        Raises:
            NotFound: there is none.
            WrongState: an alias points at it, or a job that has not ended learns from it.
        """
        self._add_new()
        with self._database.transaction() as session:
            row = _find(session, version_id)
            self._check_unused(session, row)
            # The row last: a deletion that was cut off can be asked for again.
            freed = keep_record(self._folder / row.job_id)
            row.is_deleted = True
            return freed

    def check_unused(self, version_id: str) -> None:
        """Refuse what `delete` would refuse."""
        with self._database.reading() as session:
            self._check_unused(session, _find(session, version_id))

    def _check_unused(self, session: Session, row: _VersionRow) -> None:
        named = session.scalar(select(_AliasRow).where(_AliasRow.version_id == row.id))
        if named is not None:
            raise WrongState(
                f"alias {named.alias!r} points at {row.id}; move it before the version is deleted"
            )
        model_dir = str(self.model_dir(row.job_id))
        for job_id, state in self._jobs.states().items():
            spec = None if state in ENDED else Spec.read(spec_path(self._folder / job_id))
            if spec and model_dir in (spec.base_dir, spec.teacher_dir):
                raise WrongState(
                    f"{job_id}, which has not ended, learns from {row.id}; cancel the job, or wait "
                    "for its end"
                )

    def model_dir(self, job_id: str) -> Path:
        """Return the folder of a job's model."""
        return self._folder / job_id / MODEL

    def compare(self, before: str, after: str) -> tuple[SliceQuality, ...]:
        """Compare two versions on the questions that both were measured on.

        Args:
            before: id or alias; or the base model of `after`.
            after: id or alias.

        Returns:
            All queries together, then each slice, those that lost most first.

        Raises:
            NotFound: there is no such version.
            WrongState: they were measured on different questions.
        """
        version = self.get(after)
        before_QKS, after_QKS, dims = self.paired_scores(before, version)
        slices_Q = self.slices(version)
        is_judged_Q = ~np.isnan(before_QKS[:, 0, 0])
        together = compare("", before_QKS[is_judged_Q], after_QKS[is_judged_Q], dims)
        return (together, *compare_slices(before_QKS, after_QKS, slices_Q, dims))

    def paired_scores(self, before: str, version: Version) -> tuple[Scores, Scores, list[int]]:
        """Return what each question scored with another model and with this one.

        Args:
            before: id or alias of a version, or the version's base model.
            version: see there.

        Returns:
            before_QKS, after_QKS, and the sizes that both were measured at.

        Raises:
            NotFound: there is no such version.
            WrongState: the two were measured on different questions.
        """
        after_QKS = self._scores(version.job_id, SCORES_AFTER)
        dims = [scores.dim for scores in version.quality.after]
        if before == version.base_model:
            return self._scores(version.job_id, SCORES_BEFORE), after_QKS, dims
        other = self.get(before)
        if other.quality.metric != version.quality.metric:
            raise WrongState(
                f"{other.id} was measured by {other.quality.metric} and {version.id} by "
                f"{version.quality.metric}: train both from data of one kind to compare them"
            )
        if other.questions_digest != version.questions_digest:
            raise WrongState(
                f"{other.id} and {version.id} were measured on different questions; train both "
                "with the same validation_file (or the same training file and seed) to compare them"
            )
        others = [scores.dim for scores in other.quality.after]
        both = [dim for dim in dims if dim in others]
        before_QKS = self._scores(other.job_id, SCORES_AFTER)
        return (
            before_QKS[:, [others.index(dim) for dim in both]],
            after_QKS[:, [dims.index(dim) for dim in both]],
            both,
        )

    def slices(self, version: Version) -> tuple[str, ...]:
        """Return the slice of each question that a version was measured on."""
        summary = Summary.read(self._folder / version.job_id / REPORT)
        if summary is None:
            raise WrongState(f"the report of {version.id} is gone; its job must be run again")
        return summary.slice_of_query

    def _scores(self, job_id: str, name: str) -> Scores:
        try:
            scores: Scores = np.load(self._folder / job_id / name, allow_pickle=False)
        except FileNotFoundError:
            raise WrongState(
                f"what job {job_id} has measured is gone; it must be run again to be compared"
            ) from None
        return scores

    def _add_new(self) -> None:
        """Note the models of jobs that have succeeded since."""
        with self._database.reading() as session:
            known = set(session.scalars(select(_VersionRow.job_id)))
        states: Mapping[str, str] = self._jobs.states()
        new = [id_ for id_, state in states.items() if state == "succeeded" and id_ not in known]
        ended = sorted((self._jobs.get(job_id) for job_id in new), key=lambda j: j.finished_at or 0)
        for job in ended:
            self._add(job.id, job.finished_at or 0.0)

    def _add(self, job_id: str, created_at: float) -> None:
        spec = Spec.read(spec_path(self._folder / job_id))
        result = Result.read(result_path(self._folder / job_id))
        if spec is None or result is None or result.quality is None:
            return  # a rotation; it is no model
        name = spec.model_id.removeprefix("ft:").rpartition(":")[0]
        with self._database.transaction() as session:
            if session.scalar(select(_VersionRow.id).where(_VersionRow.job_id == job_id)):
                return
            count = select(func.count()).where(_VersionRow.name == name)
            parent = select(_VersionRow.id).where(_VersionRow.id == spec.base_model)
            version = Version(
                id=spec.model_id,
                name=name,
                version=1 + (session.scalar(count) or 0),
                job_id=job_id,
                created_at=created_at,
                base_model=spec.base_model,
                parent=session.scalar(parent) or "",
                space_id=result.space_id,
                data_digest=result.data_digest,
                data_name=spec.data_name,
                questions_digest=result.questions_digest,
                code_version=result.code_version,
                hyperparameters=spec.hyperparameters,
                quality=result.quality,
            )
            session.add(
                _VersionRow(
                    id=version.id, name=name, job_id=job_id, content=version.model_dump_json(),
                    is_deleted=False,
                )
            )  # fmt: skip


def _find(session: Session, name: str) -> _VersionRow:
    alias = session.get(_AliasRow, name)
    version_id = alias.version_id if alias is not None else name
    is_meant = (_VersionRow.id == version_id, _VersionRow.is_deleted.is_(False))
    row = session.scalar(select(_VersionRow).where(*is_meant))
    if row is None:
        raise NotFound(f"there is no version or alias {name[:128]!r}", "id")
    return row


def _read(row: _VersionRow) -> Version:
    return Version.model_validate_json(row.content)
