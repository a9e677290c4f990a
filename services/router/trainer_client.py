"""The trainer, as the router sees it: vectors in, a rotation out.

Shapes: N vectors of documents, Q of queries, D full width.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from safetensors.numpy import load

from services.shared.channel import Peer
from services.shared.errors import ServiceError, peer_errors
from services.shared.pb import trainer_pb2 as pb
from services.shared.pb import trainer_pb2_grpc as pb_grpc
from services.shared.server import channel_options
from services.shared.tls import TlsFiles
from services.shared.vectors import Array

_PIECE_BYTES = 2**20
_ENDED = (pb.JOB_STATUS_SUCCEEDED, pb.JOB_STATUS_FAILED, pb.JOB_STATUS_CANCELLED)
# How far rows of a rotation may be from unit length and right angles; float32 sums are within.
_ORTHOGONAL = 1e-3


@dataclass(frozen=True, slots=True)
class NestQuality:
    """Share of the exact top 10 among the best 50 at a size, 0..1, on held-out queries."""

    dim: int
    plain: float
    pca: float
    nested: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What a nest job made."""

    rotation_DD: Array
    quality: tuple[NestQuality, ...]


class TrainerClient:
    """Calls a trainer over gRPC; close it when done.

    Args:
        address: host:port.
        api_key: sent as a bearer token; None: none is sent.
        timeout_s: longest wait for an answer; a job takes as long as it takes.
        max_message_bytes: longest message either way.
        tls: what is shown, and of which CA the trainer must be; None: nothing is encrypted.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None,
        timeout_s: float,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
    ) -> None:
        self._peer = Peer(
            address, pb_grpc.TrainerServiceStub, channel_options(max_message_bytes), tls
        )
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout_s

    async def upload(self, filename: str, rows: BinaryIO, shape: tuple[int, int]) -> str:
        """Store vectors with the trainer; return the file's id.

        Args:
            filename: for messages about it.
            rows: float32, little-endian, one after another, from the beginning.
            shape: how many there are, and how wide.
        """
        header = io.BytesIO()
        npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})

        async def requests() -> AsyncIterator[pb.UploadFileRequest]:
            yield pb.UploadFileRequest(filename=filename)
            yield pb.UploadFileRequest(data=header.getvalue())
            num_bytes = len(header.getvalue())
            while piece := await asyncio.to_thread(rows.read, _PIECE_BYTES):
                num_bytes += len(piece)
                yield pb.UploadFileRequest(data=piece)
            yield pb.UploadFileRequest(num_bytes=num_bytes)

        with peer_errors("trainer"):
            response = await self._peer.stub.UploadFile(requests(), metadata=self._metadata)
        return response.file_id

    async def delete(self, file_id: str) -> None:
        """Delete a file; harmless if it is gone. Jobs have what they need of it."""
        with peer_errors("trainer"):
            await self._peer.stub.DeleteFile(
                pb.DeleteFileRequest(file_id=file_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )

    async def nest(self, key: str, documents: str, queries: str, dims: Sequence[int]) -> str:
        """Queue a job that learns a rotation; return its id. The same key gives the same job.

        Args:
            key: of the caller's choice.
            documents: id of their vectors' file.
            queries: id of their vectors' file; "": documents stand in.
            dims: sizes to learn for, ascending.
        """
        request = pb.CreateJobRequest(
            idempotency_key=key,
            training_file=documents,
            validation_file=queries,
            hyperparameters=pb.Hyperparameters(method=pb.METHOD_NEST, matryoshka_dims=dims),
        )
        with peer_errors("trainer"):
            response = await self._peer.stub.CreateJob(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        return response.job.id

    async def wait(self, job_id: str, on_progress: Callable[[int, int], None]) -> Learned:
        """Wait until a job has ended, and fetch what it made.

        Args:
            job_id: of a nest job.
            on_progress: told its step, and of how many.

        Raises:
            NotFound: there is no such job.
            ServiceError: it failed or was cancelled; says why.
        """
        with peer_errors("trainer"):
            events = self._peer.stub.WatchJob(
                pb.WatchJobRequest(id=job_id), metadata=self._metadata
            )
            async for message in events:
                if message.event.total_steps:
                    on_progress(message.event.step, message.event.total_steps)
            response = await self._peer.stub.GetJob(
                pb.GetJobRequest(id=job_id), timeout=self._timeout_s, metadata=self._metadata
            )
        job = response.job
        if job.status != pb.JOB_STATUS_SUCCEEDED:
            ended = pb.JobStatus.Name(job.status).removeprefix("JOB_STATUS_").lower()
            raise ServiceError(f"the trainer's job {job_id} has {ended}: {job.error}")
        rotation_DD = await self._rotation(job.result_file)
        quality = tuple(
            NestQuality(row.dim, row.plain, row.pca, row.nested)
            for row in job.nest_quality
            if row.dim < len(rotation_DD)
        )
        return Learned(rotation_DD, quality)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; harmless if it has ended."""
        with peer_errors("trainer"):
            await self._peer.stub.CancelJob(
                pb.CancelJobRequest(id=job_id), timeout=self._timeout_s, metadata=self._metadata
            )

    async def _rotation(self, file_id: str) -> Array:
        data = bytearray()
        num_bytes = -1
        with peer_errors("trainer"):
            request = pb.DownloadFileRequest(file_id=file_id)
            async for message in self._peer.stub.DownloadFile(request, metadata=self._metadata):
                if message.WhichOneof("part") == "num_bytes":
                    num_bytes = message.num_bytes
                data += message.data
        if num_bytes != len(data):
            raise ServiceError("the trainer's rotation was cut off on its way")
        rotation_DD: Array = load(bytes(data))["rotation"].astype(np.float32)
        identity_DD = np.eye(len(rotation_DD), dtype=np.float32)
        if np.abs(rotation_DD @ rotation_DD.T - identity_DD).max() > _ORTHOGONAL:
            raise ServiceError("the trainer's rotation is none: its rows are not orthonormal")
        return rotation_DD

    async def close(self) -> None:
        await self._peer.close()
