"""Indexes of payloads on a Qdrant server, which builds them beside its searches and writes."""

from collections.abc import Sequence
from typing import Any

from qdrant_client import AsyncQdrantClient, models

from services.router.storage.attribute_index import unindexed
from services.router.storage.store import TENANT

_KINDS: dict[str, models.PayloadSchemaType] = {
    "string": models.PayloadSchemaType.KEYWORD,
    "number": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.INTEGER,  # 0 and 1, see `attributes.py`
}


async def index_tenants(client: AsyncQdrantClient, name: str) -> None:
    """Index whose each point is; waits for it."""
    index = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    await client.create_payload_index(name, TENANT, index, wait=True)


async def index_attributes(
    client: AsyncQdrantClient,
    name: str,
    info: models.CollectionInfo,
    payloads: Sequence[dict[str, Any]],
) -> None:
    """Have the attributes of points indexed; does not wait for it.

    After they are written: what a write read of the collection before must not grow old meanwhile.
    """
    for path, kind in unindexed(payloads, info.payload_schema or ()).items():
        await client.create_payload_index(name, path, _KINDS[kind], wait=False)
