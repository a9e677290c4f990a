"""One collection in Qdrant Edge. The only file that knows `qdrant_edge`; runs in a worker only.

Edge never gives up Python's global lock: loaded in the router it would stop every other call
while it works.

Shapes: B points, M width of one size.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import qdrant_edge as edge

from services.router.hybrid.text_index import TextIndex, document_terms
from services.router.plan import Stage, oversampling
from services.router.rotation import Rotation
from services.router.sizes import Placement, Size, cut, ef_construct
from services.router.storage.attribute_index import unindexed
from services.router.storage.store import TENANT, is_plain_rescoring
from services.shared.vectors import Array

_MEMORY: dict[Placement, edge.Memory] = {
    "pinned": edge.Memory.Pinned,
    "cached": edge.Memory.Cached,
    "cold": edge.Memory.Cold,
}
# KiB of vectors under which a filtered search scans instead of walking the graph: Qdrant's own.
_FULL_SCAN_THRESHOLD_KB = 10_000

# Points, times attributes that are new to them: more are indexed with the next build, beside the
# searches. Of so many it takes some 0.1 s, in which nothing is answered (Edge 0.9: 5 us each).
_MAX_INDEXED_AT_ONCE = 20_000
# Points that a build looks at for attributes without an index.
_SAMPLE = 1000


def create(
    path: str, sizes: Sequence[Size], text_index: TextIndex | None, indexing_threshold_kb: int
) -> None:
    """Create an empty shard on disk and close it."""
    sparse = edge.EdgeSparseVectorParams(memory=edge.Memory.Cached)
    config = edge.EdgeConfig(
        vectors={size.vector_name: _vector_params(size, sizes[-1].dim) for size in sizes},
        sparse_vectors={text_index.vector_name: sparse} if text_index else None,
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=indexing_threshold_kb),
        # An update that returned must survive kill -9.
        wal_enabled=True,
    )
    edge.EdgeShard.create(path, config).close()


def _vector_params(size: Size, full: int) -> edge.EdgeVectorParams:
    return edge.EdgeVectorParams(
        size=size.dim,
        distance=edge.Distance.Cosine,
        hnsw_config=edge.HnswIndexConfig(
            m=size.hnsw_m,
            ef_construct=ef_construct(size, full),
            full_scan_threshold=_FULL_SCAN_THRESHOLD_KB,
            memory=_MEMORY[size.graph_placement],
        ),
        quantization_config=_codes(size),
        memory=_MEMORY[size.placement],
    )


def _codes(size: Size) -> Any:  # noqa: ANN401 (edge's config types)
    memory = _MEMORY[size.codes_placement]
    match size.quantization:
        case "none":
            return None
        case "int8":
            return edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, memory=memory)
        case "binary":
            return edge.BinaryQuantizationConfig(memory=memory)
        case turbo:
            bits = edge.TurboQuantBitSize
            wanted = {"turbo4": bits.Bits4, "turbo2": bits.Bits2, "turbo1": bits.Bits1}[turbo]
            return edge.TurboQuantQuantizationConfig(bits=wanted, memory=memory)


def _attribute_index(kind: str) -> Any:  # noqa: ANN401 (edge's types)
    # Read from the disk through the page cache. Graphs stay as they are: links of their own for the
    # values of an attribute would take memory that nobody has counted.
    params: dict[str, Any] = {"memory": edge.Memory.Cached, "enable_hnsw": False}
    match kind:
        case "string":
            return edge.KeywordIndexParams(**params)
        case "number":
            return edge.FloatIndexParams(**params)
        case _:  # booleans, as 0 and 1
            return edge.IntegerIndexParams(lookup=True, range=False, **params)


class Shard:
    """An open collection.

    Args:
        path: its folder.
        sizes: of the collection.
        rotation: of its nested sizes.
        text_index: its own, if it has one.

    Raises (all methods): Exception, as Edge has no finer kind; its text says what happened.
    """

    def __init__(
        self,
        path: str,
        sizes: Sequence[Size],
        rotation: Rotation | None,
        text_index: TextIndex | None = None,
    ) -> None:
        self._shard = edge.EdgeShard.load(path)
        self._sizes = tuple(sizes)
        self._by_key = {size.key: size for size in sizes}
        self._rotation = rotation
        self._text_index = text_index
        # New, or from before there were tenants. Without it a search reads all points' payloads: of
        # a tenant of 69 points among 20,000 it takes 18 ms, and with it 0.15 ms (Edge 0.9).
        self._indexed = set(self._shard.info().payload_schema)
        if TENANT not in self._indexed:
            self._index(TENANT, edge.KeywordIndexParams(is_tenant=True))
        # Attributes that wait for the next build.
        self._waiting: set[str] = set()

    def _index(self, path: str, index: Any) -> None:  # noqa: ANN401 (edge's types)
        self._shard.update(edge.UpdateOperation.create_field_index(path, index))
        self._indexed.add(path)

    def _index_attributes(self, payloads: list[dict[str, Any]], most: int | None = None) -> None:
        """Index attributes that have none; what is more than `most` to read waits for a build."""
        known = self._indexed if most is None else self._indexed | self._waiting
        wanted = unindexed(payloads, known)
        if wanted and most is not None and len(wanted) * self._shard.info().points_count > most:
            self._waiting |= wanted.keys()
            return
        for path, kind in wanted.items():
            self._index(path, _attribute_index(kind))

    def upsert(self, ids: list[str], payloads: list[dict[str, Any]], vectors: bytes) -> None:
        """Write points; `vectors` are full rows, float32."""
        vectors_BD = np.frombuffer(vectors, dtype="<f4").reshape(len(ids), -1)
        rows: dict[str, list[Any]] = {
            name: vectors_BM.tolist()
            for name, vectors_BM in cut(vectors_BD, self._sizes, self._rotation).items()
        }
        if self._text_index is not None:
            texts = [payload["text"] for payload in payloads]
            rows[self._text_index.vector_name] = [_sparse(text, self._text_index) for text in texts]
        self._index_attributes(payloads, _MAX_INDEXED_AT_ONCE)
        points = [
            edge.Point(id_, {name: vectors[row] for name, vectors in rows.items()}, payload)
            for row, (id_, payload) in enumerate(zip(ids, payloads, strict=True))
        ]
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def delete(self, ids: list[str]) -> None:
        self._shard.update(edge.UpdateOperation.delete_points(list(ids)))

    def set_payload(self, ids: list[str], payload: dict[str, Any]) -> list[str]:
        """Replace parts of points' payloads; return the ids of those that are there."""
        records = self._shard.retrieve(list(ids), with_payload=False, with_vector=False)
        there = [str(record.id) for record in records]
        if there:  # Edge fails, after some, at one that is not
            self._index_attributes([payload], _MAX_INDEXED_AT_ONCE)
            self._shard.update(edge.UpdateOperation.set_payload(list(there), payload))
        return there

    def search(
        self,
        stages: list[list[Any]],
        query: bytes,
        conditions: dict[str, Any] | None,
        with_payload: bool,
    ) -> tuple[float, list[tuple[str, float, dict[str, Any] | None]]]:
        """Run a plan as one nested query.

        Args:
            stages: each a `Stage`'s fields, in their order.
            query: the full vector, float32.
            conditions: see `conditions.py`.
            with_payload: False leaves payloads out.

        Returns:
            The engine's seconds, and (id, score, payload), best first.
        """
        query_D = np.frombuffer(query, dtype="<f4")
        plan = [Stage(*stage) for stage in stages]
        looked_at = [self._by_key[stage.key] for stage in plan]
        vectors = cut(query_D[None], looked_at, self._rotation)
        condition = _filter(conditions) if conditions else None
        inner: list[edge.Prefetch] = []
        for stage in plan[:-1]:
            inner = [
                edge.Prefetch(
                    limit=stage.candidates,
                    query=self._near(stage, vectors),
                    params=self._params(stage, is_first=not inner),
                    # What the first stage hands on is filtered already.
                    filter=None if inner else condition,
                    prefetches=inner,
                )
            ]
        request = edge.QueryRequest(
            limit=plan[-1].candidates,
            query=self._near(plan[-1], vectors),
            params=self._params(plan[-1], is_first=not inner),
            filter=None if inner else condition,
            prefetches=inner,
            with_payload=with_payload,
        )
        return self._query(request)

    def search_text(
        self,
        terms: list[int],
        weights: list[float],
        limit: int,
        conditions: dict[str, Any] | None,
        with_payload: bool,
    ) -> tuple[float, list[tuple[str, float, dict[str, Any] | None]]]:
        """Find what holds the terms; returns as `search` does."""
        assert self._text_index is not None
        near = edge.Query.Nearest(
            edge.SparseVector(terms, weights), using=self._text_index.vector_name
        )
        request = edge.QueryRequest(
            limit=limit,
            query=near,
            filter=_filter(conditions) if conditions else None,
            with_payload=with_payload,
        )
        return self._query(request)

    def _query(
        self, request: edge.QueryRequest
    ) -> tuple[float, list[tuple[str, float, dict[str, Any] | None]]]:
        start = time.perf_counter()
        found = self._shard.query(request)
        seconds = time.perf_counter() - start
        return seconds, [(str(hit.id), hit.score, hit.payload) for hit in found]

    def terms(
        self, after: str | None, limit: int, conditions: dict[str, Any] | None
    ) -> tuple[int, list[int], list[int], str | None]:
        """Count terms on a page: how many points, each term and how many hold it, the next page."""
        assert self._text_index is not None
        name = self._text_index.vector_name
        records, offset = self._shard.scroll(
            edge.ScrollRequest(
                offset=after,
                limit=limit,
                filter=_filter(conditions) if conditions else None,
                with_payload=False,
                with_vector=[name],
            )
        )
        vectors: list[Any] = [record.vector for record in records]
        texts = [vector[name] for vector in vectors if name in (vector or {})]
        counts = Counter(term for text in texts for term in text.indices)
        return (
            len(records), list(counts), list(counts.values()),
            None if offset is None else str(offset),
        )  # fmt: skip

    def _near(self, stage: Stage, vectors: dict[str, Array]) -> Any:  # noqa: ANN401 (edge.Query)
        name = self._by_key[stage.key].vector_name
        return edge.Query.Nearest(vectors[name][0].tolist(), using=name)

    def _params(self, stage: Stage, is_first: bool) -> edge.SearchParams:
        size = self._by_key[stage.key]
        times = oversampling(stage, size)
        return edge.SearchParams(
            hnsw_ef=stage.ef or None,
            exact=stage.exact or is_plain_rescoring(stage, size, is_first),
            quantization=edge.QuantizationSearchParams(
                ignore=stage.ignore_quantization,
                rescore=times > 0,
                oversampling=times if times > 1 else None,
            ),
        )

    def scroll(self, after: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return payloads, and where the next page begins."""
        records, offset = self._shard.scroll(
            edge.ScrollRequest(offset=after, limit=limit, with_payload=True)
        )
        payloads = [record.payload for record in records if record.payload]
        return payloads, None if offset is None else str(offset)

    def vectors(self, after: str | None, limit: int) -> tuple[list[str], bytes, str | None]:
        """Return ids and full vectors, float32, and where the next page begins."""
        full = self._sizes[-1].vector_name
        records, offset = self._shard.scroll(
            edge.ScrollRequest(offset=after, limit=limit, with_payload=False, with_vector=[full])
        )
        ids = [str(record.id) for record in records]
        return ids, self._rows(records), None if offset is None else str(offset)

    def page(
        self, after: str | None, limit: int
    ) -> tuple[list[str], list[dict[str, Any]], bytes, str | None]:
        """Return whole points, as `upsert` takes them, and where the next page begins."""
        full = self._sizes[-1].vector_name
        records, offset = self._shard.scroll(
            edge.ScrollRequest(offset=after, limit=limit, with_payload=True, with_vector=[full])
        )
        return *self._points(records), None if offset is None else str(offset)

    def points(self, ids: list[str]) -> tuple[list[str], list[dict[str, Any]], bytes]:
        """Return those of some points that are there, whole."""
        full = self._sizes[-1].vector_name
        return self._points(self._shard.retrieve(list(ids), with_payload=True, with_vector=[full]))

    def _points(self, records: list[edge.Record]) -> tuple[list[str], list[dict[str, Any]], bytes]:
        ids = [str(record.id) for record in records]
        return ids, [record.payload or {} for record in records], self._rows(records)

    def _rows(self, records: list[edge.Record]) -> bytes:
        full = self._sizes[-1].vector_name
        vectors: list[Any] = [record.vector for record in records]
        return np.array([vector[full] for vector in vectors], dtype="<f4").tobytes()

    def count(self, conditions: dict[str, Any] | None) -> int:
        wanted = _filter(conditions) if conditions else None
        return self._shard.count(edge.CountRequest(exact=True, filter=wanted))

    def progress(self) -> tuple[int, int]:
        """Return how many points there are, and how many of them no index holds yet."""
        info = self._shard.info()
        # Each vector of an indexed point is counted, those without a graph too; and the terms of
        # all points, indexed or not.
        terms = info.points_count if self._text_index else 0
        indexed = max(0, info.indexed_vectors_count - terms) // len(self._sizes)
        return info.points_count, max(0, info.points_count - indexed)

    def optimize(self) -> None:
        """Index what is not yet; blocks until it is done (10,000 points at 64, 128, 384: 4 s)."""
        payloads, _ = self.scroll(None, _SAMPLE)
        self._index_attributes(payloads)
        self._shard.optimize()
        self._shard.flush()

    def flush(self) -> None:
        self._shard.flush()

    def close(self) -> None:
        self._shard.close()


def _sparse(text: str, text_index: TextIndex) -> edge.SparseVector:
    terms = document_terms(text, text_index)
    return edge.SparseVector(terms.indices, terms.values)


def _filter(conditions: dict[str, Any]) -> edge.Filter:
    arms = {clause: [_condition(arm) for arm in some] for clause, some in conditions.items()}
    return edge.Filter(
        must=arms.get("must"), should=arms.get("should"), must_not=arms.get("must_not")
    )


def _condition(condition: dict[str, Any]) -> Any:  # noqa: ANN401 (edge's condition types)
    if "has_id" in condition:
        return edge.HasIdCondition(set(condition["has_id"]))
    if "key" not in condition:
        return _filter(condition)
    if "range" in condition:
        return edge.FieldCondition(condition["key"], range=edge.RangeFloat(**condition["range"]))
    match = condition["match"]
    wanted = edge.MatchAny(match["any"]) if "any" in match else edge.MatchValue(match["value"])
    return edge.FieldCondition(condition["key"], match=wanted)
