"""A database that an earlier version made is gone on with."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from services.router.vector_stores.stores import VectorStore, VectorStores
from services.shared.blobs import Blobs
from services.shared.database import Database
from services.shared.files import File, Files
from services.shared.paging import Paging

# As they were made before rows had a tenant.
BEFORE = """
CREATE TABLE uploaded_files (number INTEGER NOT NULL PRIMARY KEY, id VARCHAR NOT NULL UNIQUE,
    filename VARCHAR NOT NULL, purpose VARCHAR NOT NULL, num_bytes BIGINT NOT NULL,
    created_at FLOAT NOT NULL, expires_at FLOAT, is_deleted BOOLEAN NOT NULL);
CREATE TABLE vector_stores (number INTEGER NOT NULL PRIMARY KEY, id VARCHAR NOT NULL UNIQUE,
    state VARCHAR NOT NULL, collection VARCHAR NOT NULL, model VARCHAR NOT NULL,
    dim INTEGER NOT NULL, auto_tokens INTEGER NOT NULL, name VARCHAR NOT NULL, description VARCHAR,
    tags JSON NOT NULL, created_at FLOAT NOT NULL, last_active_at FLOAT NOT NULL,
    expires_days INTEGER);
INSERT INTO uploaded_files VALUES (1, 'file-1', 'a.txt', 'assistants', 3, 1.0, NULL, 0);
INSERT INTO vector_stores VALUES (1, 'vs_1', 'open', 'vs_1', 'm', 8, 100, 'old', NULL, '{}', 1, 1,
    NULL);
"""


async def test_what_is_there_is_the_operators_and_new_rows_may_be_a_tenants(tmp_path):
    """The column is added, once; an older version could still write the table."""
    path = tmp_path / "router.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(BEFORE)
    old.close()
    for _ in range(2):
        database = Database(f"sqlite:///{path}")
        database.open()
        files = Files(database, Blobs(str(tmp_path / "files"), 100))
        stores = VectorStores(database)
        assert (await files.get("file-1", None)).tenant is None
        assert stores.get("vs_1", None).tenant is None
        assert (await files.page(Paging(10), "", "acme")).items == []
        assert stores.page(Paging(10), "acme").items == []
        database.close()
    database.open()
    await files.add(
        File(id="file-2", filename="b", purpose="assistants", num_bytes=1, created_at=1.0,
             tenant="acme")
    )  # fmt: skip
    assert [file.id for file in (await files.page(Paging(10), "", "acme")).items] == ["file-2"]
    assert len((await files.page(Paging(10), "", None)).items) == 2
    database.close()
    with sqlite3.connect(path) as old:
        names = {name for (name,) in old.execute("SELECT name FROM sqlite_master")}
        old.execute(
            "INSERT INTO uploaded_files (id, filename, purpose, num_bytes, created_at, is_deleted) "
            "VALUES ('file-3', 'c', 'assistants', 1, 1.0, 0)"
        )
    old.close()
    assert {"ix_uploaded_files_tenant", "ix_vector_stores_tenant"} <= names


def test_two_processes_lose_no_change_to_each_other(tmp_path):
    """What a transaction has read is as it was when it writes, also of a database of two owners."""
    databases = [Database(f"sqlite:///{tmp_path}/router.sqlite") for _ in range(2)]
    databases[0].open()
    store = VectorStore(id="vs", collection="vs", model="m", metadata={}, expires_days=0)
    VectorStores(databases[0]).add(store, "router")

    def count(database):
        for _ in range(25):
            with database.transaction() as session:
                (days,) = session.execute(text("SELECT expires_days FROM vector_stores")).one()
                time.sleep(0.001)
                session.execute(text("UPDATE vector_stores SET expires_days = :n"), {"n": days + 1})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, databases * 2))
    with databases[1].reading() as session:
        assert session.execute(text("SELECT expires_days FROM vector_stores")).one() == (100,)
    for database in databases:
        database.close()
