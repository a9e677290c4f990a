"""The router over its wire: real gRPC, real Edge; the encoder draws vectors from digests."""

import asyncio

import grpc
import numpy as np
import pytest

from services.shared.pb import router_pb2 as pb
from services.shared.vectors import pack, truncate
from tests.router.conftest import encode

DIM = 32


def vectors_of(ids, model="small", dim=DIM):
    return pack(np.stack([encode(model, id_, dim) for id_ in ids]))


def make_points(*ids, **attributes):
    return [
        pb.Point(
            id=id_,
            text=f"text of {id_}",
            attributes={k: pb.AttributeValue(int_value=v) for k, v in attributes.items()},
        )
        for id_ in ids
    ]


async def create(router, name="docs", **more):
    answer = await router.stub.CreateCollection(
        pb.CreateCollectionRequest(name=name, model="default", **more)
    )
    return answer.collection


async def upsert(router, *requests):
    return [answer async for answer in router.stub.Upsert(iter(requests))]


async def fill(router, rows=40, name="docs"):
    points = [*make_points(*(f"p{i}" for i in range(rows)))]
    for i, point in enumerate(points):
        point.attributes["row"].int_value = i
    await upsert(router, pb.UpsertRequest(collection=name, points=points))


async def read_all(stream, answers):
    async for answer in stream:
        answers.append(answer)


async def refused(call, code, says=""):
    done = read_all(call, []) if hasattr(call, "__aiter__") else call
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await done
    assert caught.value.code() == code, caught.value
    assert says in caught.value.details()


INVALID = grpc.StatusCode.INVALID_ARGUMENT
STATE = grpc.StatusCode.FAILED_PRECONDITION


async def test_a_collection_takes_the_model_behind_an_alias(router):
    """The model's own id is kept, with its space, declared sizes and what they cost."""
    collection = await create(router)
    assert (collection.model, collection.space_id) == ("small", "space-small")
    assert [(s.dim, s.hnsw_m) for s in collection.sizes] == [(8, 16), (16, 16), (32, 0)]
    assert [(m.dim, m.vector_bytes) for m in collection.memory] == [(8, 32), (16, 64), (32, 128)]
    listed = await router.stub.ListCollections(pb.ListCollectionsRequest())
    assert list(listed.collections) == [collection]
    taken = router.stub.CreateCollection(pb.CreateCollectionRequest(name="docs", model="wide"))
    await refused(taken, grpc.StatusCode.ALREADY_EXISTS, "'docs' is taken")


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (pb.CreateCollectionRequest(name="a/b", model="small"), INVALID, "1 to 255 letters"),
        (pb.CreateCollectionRequest(name="", model="small"), INVALID, "1 to 255 letters"),
        (pb.CreateCollectionRequest(name="..", model="small"), INVALID, "1 to 255 letters"),
        (
            pb.CreateCollectionRequest(name="a", model="gone"),
            grpc.StatusCode.NOT_FOUND,
            "'gone' is not loaded",
        ),
        (
            pb.CreateCollectionRequest(name="a", model="small", sizes=[pb.Size(dim=33)]),
            INVALID,
            "between 1 and 32",
        ),
        (
            pb.CreateCollectionRequest(
                name="a", model="small", sizes=[pb.Size(dim=8, quantization=9)]
            ),
            INVALID,
            "QUANTIZATION_INT8",
        ),
        (
            pb.CreateCollectionRequest(
                name="a", model="small", sizes=[pb.Size(dim=8, placement=pb.PLACEMENT_PINNED)]
            ),
            INVALID,
            "index_placement pins codes and graph",
        ),
        (
            pb.CreateCollectionRequest(
                name="a", model="small", sizes=[pb.Size(dim=8, index_placement=9)]
            ),
            INVALID,
            "index_placement may be PLACEMENT_PINNED too",
        ),
        (
            pb.CreateCollectionRequest(
                name="a",
                model="small",
                sizes=[pb.Size(dim=8, hnsw_m=0, index_placement=pb.PLACEMENT_PINNED)],
            ),
            INVALID,
            "belongs to a size with codes or a graph; leave it unset at 8",
        ),
    ],
)
async def test_a_bad_collection_is_refused(router, request_, code, says):
    """Nothing is created, and the message says what would be accepted."""
    await refused(router.stub.CreateCollection(request_), code, says)
    assert not (await router.stub.ListCollections(pb.ListCollectionsRequest())).collections


async def test_texts_are_encoded_written_and_found(router):
    """A text finds itself first, with all it was stored with; the answer says what ran."""
    await create(router)
    await fill(router)
    answer = await router.stub.Search(
        pb.SearchRequest(
            collection="docs", text="text of p7", limit=3, explain=True, measure_recall=True
        )
    )
    assert answer.hits[0].id == "p7"
    assert answer.hits[0].text == "text of p7"
    assert answer.hits[0].attributes["row"].int_value == 7
    assert answer.hits[0].score == pytest.approx(1, abs=1e-5)
    assert [(s.dim, s.candidates) for s in answer.plan.stages] == [(8, 100), (32, 3)]
    assert [(s.dim, s.candidates) for s in answer.stages] == [(8, 40), (32, 3)]
    assert all(stage.seconds >= 0 for stage in answer.stages)
    assert answer.recall == 1.0  # the shortlist holds every point
    assert (answer.collection, answer.space_id) == ("docs", "space-small")
    assert min(answer.encode_seconds, answer.search_seconds, answer.exact_seconds) > 0


async def test_recall_shows_what_a_short_shortlist_loses(router):
    """A shortlist no longer than the answer, on 8 of 32 random numbers, must lose something."""
    await create(router)
    await fill(router, 90)
    plan = pb.Plan(stages=[pb.Stage(dim=8, candidates=10), pb.Stage(dim=32)])
    recalls = []
    for i in range(10):
        answer = await router.stub.Search(
            pb.SearchRequest(collection="docs", text=f"q{i}", plan=plan, measure_recall=True)
        )
        recalls.append(answer.recall)
    assert 0 < np.mean(recalls) < 0.9
    silent = await router.stub.Search(pb.SearchRequest(collection="docs", text="q"))
    assert not silent.HasField("recall")
    assert not silent.stages


async def test_hits_tell_their_place_in_the_shortlist(router):
    """Explained, each hit says where the first stage had it; else nothing is said."""
    await create(router)
    await fill(router, 90)
    query_D = encode("small", "where", DIM)
    points_ND = np.stack([encode("small", f"text of p{row}", DIM) for row in range(90)])
    order = np.argsort(-(truncate(points_ND, 8) @ truncate(query_D[None], 8)[0]))
    ranks = {f"p{row}": rank for rank, row in enumerate(order.tolist(), start=1)}
    plan = pb.Plan(stages=[pb.Stage(dim=8, candidates=30, exact=True), pb.Stage(dim=32)])
    search = pb.SearchRequest(collection="docs", text="where", limit=6, plan=plan)
    assert {hit.shortlist_rank for hit in (await router.stub.Search(search)).hits} == {0}
    search.explain = True
    answer = await router.stub.Search(search)
    assert [hit.shortlist_rank for hit in answer.hits] == [ranks[hit.id] for hit in answer.hits]
    assert max(hit.shortlist_rank for hit in answer.hits) > 6, "the rerank must change the order"
    alone = pb.SearchRequest(
        collection="docs", text="where", limit=3, plan=pb.Plan(stages=[pb.Stage(dim=32)]),
        explain=True,
    )  # fmt: skip
    assert [hit.shortlist_rank for hit in (await router.stub.Search(alone)).hits] == [1, 2, 3]


@pytest.mark.parametrize(
    "quantization", [q for q in pb.Quantization.values() if q != pb.QUANTIZATION_UNSPECIFIED]
)
async def test_recall_counts_hits_not_what_codes_score_them(router, quantization):
    """Codes that overrate a wrong hit do not make it a right one."""
    await create(router, sizes=[pb.Size(dim=32, quantization=quantization, hnsw_m=0)])
    await fill(router, 90)
    plan = pb.Plan(stages=[pb.Stage(dim=32, oversampling=0)])
    exact = pb.Plan(stages=[pb.Stage(dim=32, exact=True)])
    recalls, shares = [], []
    for i in range(10):
        asked = {"collection": "docs", "text": f"q{i}"}
        found = await router.stub.Search(pb.SearchRequest(**asked, plan=plan, measure_recall=True))
        true = await router.stub.Search(pb.SearchRequest(**asked, plan=exact))
        recalls.append(found.recall)
        shares.append(len({hit.id for hit in found.hits} & {hit.id for hit in true.hits}) / 10)
    assert recalls == pytest.approx(shares)


async def test_vectors_are_taken_as_they_are(router):
    """Points and queries by vector need no text and no encoder."""
    await create(router)
    ids = ["a", "b"]
    points = [pb.Point(id=id_) for id_ in ids]
    router.encoder.fail_after = 0
    await upsert(
        router,
        pb.UpsertRequest(
            collection="docs", points=points, vectors=vectors_of(ids), space_id="space-small"
        ),
    )
    answer = await router.stub.Search(
        pb.SearchRequest(collection="docs", vector=vectors_of(["b"]), space_id="space-small")
    )
    assert [hit.id for hit in answer.hits] == ["b", "a"]
    assert answer.encode_seconds == 0


async def test_a_stream_acknowledges_each_batch_in_order(router):
    """Every batch has its answer with running totals and the ids that were cut."""
    await create(router)
    batches = [
        pb.UpsertRequest(collection="docs", points=make_points("a", "b")),
        pb.UpsertRequest(points=[pb.Point(id="long", text="x" * 101)]),
        # More texts than one call to the encoder takes; the last one is too long again.
        pb.UpsertRequest(
            points=[*make_points(*(f"c{i}" for i in range(49))), pb.Point(id="z", text="x" * 101)]
        ),
    ]
    answers = await upsert(router, *batches)
    assert [(a.num_points, a.total_points) for a in answers] == [(2, 2), (1, 3), (50, 53)]
    assert [list(a.truncated_ids) for a in answers] == [[], ["long"], ["z"]]
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    assert found.collection.num_points == 53
    samples = router.registry.get_sample_value
    assert samples("matryoshka_router_written_points_total") == 53
    assert samples("matryoshka_router_collections_count") == 1


BAD_BATCHES = [
    (pb.UpsertRequest(), "points must be 1 to 100, got 0"),
    (pb.UpsertRequest(points=make_points(*map(str, range(101)))), "got 101"),
    (pb.UpsertRequest(points=[pb.Point(text="x")]), "points[0]: id must have 1 to 512"),
    (pb.UpsertRequest(points=[pb.Point(id="a" * 513, text="x")]), "id must have"),
    (pb.UpsertRequest(points=[pb.Point(id="a", text=" ")]), "text is empty"),
    (pb.UpsertRequest(points=[pb.Point(id="a", text="x" * 1001)]), "at most 1000"),
    (
        pb.UpsertRequest(
            points=[pb.Point(id="a", text="x", attributes={"k": pb.AttributeValue()})]
        ),
        "needs a string_value",
    ),
    (
        pb.UpsertRequest(points=make_points("a", **{"a.b": 1})),
        "points[0].attributes: an attribute's key",
    ),
    (
        pb.UpsertRequest(points=make_points("a"), vectors=vectors_of("a")),
        "vectors need the space_id",
    ),
    (
        pb.UpsertRequest(points=make_points("a"), vectors=vectors_of("ab"), space_id="space-small"),
        "must hold 1 x 32",
    ),
    (
        pb.UpsertRequest(points=make_points("a"), vectors=bytes(128), space_id="space-small"),
        "vector of zeros",
    ),
    (
        pb.UpsertRequest(
            points=make_points("a"),
            vectors=np.full(32, np.nan, "<f4").tobytes(),
            space_id="space-small",
        ),
        "finite",
    ),
]


@pytest.mark.parametrize(("bad", "says"), BAD_BATCHES, ids=[says for _, says in BAD_BATCHES])
async def test_a_bad_batch_ends_the_stream_and_is_named(router, bad, says):
    """The batches before it are acknowledged and stay; it and those after it are not written."""
    await create(router)
    good = pb.UpsertRequest(collection="docs", points=make_points("good"))
    after = pb.UpsertRequest(points=make_points("after"))
    acknowledged = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(router.stub.Upsert(iter([good, bad, after])), acknowledged)
    assert caught.value.code() == INVALID
    assert caught.value.details().startswith("batch 2: ")
    assert says in caught.value.details()
    assert [answer.num_points for answer in acknowledged] == [1]
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    assert found.collection.num_points == 1


async def test_vectors_of_another_space_are_refused_with_both_names(router):
    """Two spaces never meet: neither in a write nor in a query nor behind a swapped model."""
    await create(router)
    both = "space 'space-wide', but collection 'docs' holds space 'space-small'"
    bad = pb.UpsertRequest(
        collection="docs",
        points=make_points("a"),
        vectors=vectors_of("a", "wide", 48),
        space_id="space-wide",
    )
    await refused(router.stub.Upsert(iter([bad])), STATE, both)
    search = pb.SearchRequest(
        collection="docs", vector=vectors_of("a", "wide", 48), space_id="space-wide"
    )
    await refused(router.stub.Search(search), STATE, both)
    router.encoder.spaces["small"] = "space-new"
    by_text = pb.SearchRequest(collection="docs", text="x")
    await refused(router.stub.Search(by_text), STATE, "'space-new'")
    texts = pb.UpsertRequest(collection="docs", points=make_points("a"))
    await refused(router.stub.Upsert(iter([texts])), STATE, "'space-new'")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either a query text or a query vector"),
        ({"text": "  "}, "text must have 1 to 1000"),
        ({"text": "x", "limit": 1001}, "limit must be between 1 and 1000, got 1001"),
        ({"vector": vectors_of("a")}, "needs the space_id"),
        ({"vector": b"123", "space_id": "space-small"}, "1 x 32 little-endian"),
        ({"text": "x", "filter": pb.Filter()}, "each filter needs one of"),
        ({"text": "x", "filter": pb.Filter(all=pb.FilterList())}, "at least one filter"),
        ({"text": "x", "plan": pb.Plan()}, "1 to 3 stages"),
        ({"text": "x", "plan": pb.Plan(stages=[pb.Stage(dim=9)])}, "(8, 16, 32), got 9"),
        (
            {
                "text": "x",
                "plan": pb.Plan(stages=[pb.Stage(dim=8, candidates=501), pb.Stage(dim=32)]),
            },
            "and 500, got 501",
        ),
    ],
)
async def test_a_bad_search_is_refused_before_any_work(router, fields, says):
    """Nothing is encoded for a search that cannot work."""
    await create(router)
    router.encoder.may_answer.clear()  # encoding would hang
    search = router.stub.Search(pb.SearchRequest(collection="docs", **fields), timeout=5)
    await refused(search, INVALID, says)


async def test_attributes_come_back_with_their_types(router):
    """Each of the four kinds of value crosses the wire and the storage unchanged."""
    await create(router)
    attributes = {
        "s": pb.AttributeValue(string_value=""),
        "i": pb.AttributeValue(int_value=-(2**63)),
        "d": pb.AttributeValue(double_value=2.0),
        "b": pb.AttributeValue(bool_value=False),
    }
    point = pb.Point(id="a", text="x", attributes=attributes)
    await upsert(router, pb.UpsertRequest(collection="docs", points=[point]))
    answer = await router.stub.Search(pb.SearchRequest(collection="docs", text="x"))
    assert dict(answer.hits[0].attributes) == attributes


async def test_filters_reach_the_engine(router):
    """All six kinds of condition cross the wire."""
    await create(router)
    await fill(router, 20)
    number = pb.AttributeValue
    five = pb.Filter(equals=pb.Equals(key="row", value=number(double_value=5.0)))
    small = pb.Filter(range=pb.Range(key="row", lt=3))
    some = pb.Filter(any_of=pb.AnyOf(key="row", values=[number(int_value=9)]))
    either = pb.Filter(any=pb.FilterList(filters=[five, small, some]))
    not_one = pb.Filter(negated=pb.Filter(equals=pb.Equals(key="row", value=number(int_value=1))))
    condition = pb.Filter(all=pb.FilterList(filters=[either, not_one]))
    answer = await router.stub.Search(
        pb.SearchRequest(collection="docs", text="x", filter=condition, measure_recall=True)
    )
    assert {hit.id for hit in answer.hits} == {"p0", "p2", "p5", "p9"}
    assert answer.recall == 1.0


async def test_a_collection_with_an_alias_is_not_deleted(router):
    """First the alias must point elsewhere; aliases are not followed by a delete."""
    await create(router)
    await create(router, "docs2")
    point = pb.SetCollectionAliasRequest(alias="current", collection="docs")
    await router.stub.SetCollectionAlias(point)
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="current"))
    assert list(found.collection.aliases) == ["current"]
    delete = router.stub.DeleteCollection
    await refused(delete(pb.DeleteCollectionRequest(name="docs")), STATE, "'current' points at")
    await refused(delete(pb.DeleteCollectionRequest(name="current")), STATE, "an alias of 'docs'")
    await router.stub.SetCollectionAlias(
        pb.SetCollectionAliasRequest(alias="current", collection="docs2")
    )
    await delete(pb.DeleteCollectionRequest(name="docs"))
    missing = router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    await refused(missing, grpc.StatusCode.NOT_FOUND, "no collection or alias 'docs'")


async def test_deletes_remove_points(router):
    """Deleted points are not found; a delete of nothing is refused."""
    await create(router)
    await fill(router, 5)
    await router.stub.Delete(pb.DeleteRequest(collection="docs", ids=["p1", "unknown"]))
    answer = await router.stub.Search(pb.SearchRequest(collection="docs", text="text of p1"))
    assert {hit.id for hit in answer.hits} == {"p0", "p2", "p3", "p4"}
    empty = router.stub.Delete(pb.DeleteRequest(collection="docs"))
    await refused(empty, INVALID, "ids must be 1 to 100, got 0")


async def test_an_encoder_that_is_away_is_unavailable(router):
    """The caller may retry; nothing is written."""
    await create(router)
    router.encoder.fail_after = 0
    batch = pb.UpsertRequest(collection="docs", points=make_points("a"))
    unavailable = grpc.StatusCode.UNAVAILABLE
    await refused(router.stub.Upsert(iter([batch])), unavailable, "batch 1: the encoder")
    search = router.stub.Search(pb.SearchRequest(collection="docs", text="x"))
    await refused(search, unavailable, "the encoder")


async def test_a_stream_follows_its_alias(router):
    """A batch goes where the alias points when it is written, in that collection's space."""
    await create(router)
    await create(router, "docs2")
    alias = router.stub.SetCollectionAlias
    await alias(pb.SetCollectionAliasRequest(alias="current", collection="docs"))
    go_on = asyncio.Event()

    async def batches():
        yield pb.UpsertRequest(collection="current", points=make_points("a"))
        await go_on.wait()
        yield pb.UpsertRequest(points=make_points("b"))

    stream = router.stub.Upsert(batches())
    await stream.read()
    await alias(pb.SetCollectionAliasRequest(alias="current", collection="docs2"))
    go_on.set()
    await stream.read()
    counts = [
        (await router.stub.GetCollection(pb.GetCollectionRequest(name=name))).collection.num_points
        for name in ("docs", "docs2")
    ]
    assert counts == [1, 1]


async def test_a_stream_left_by_its_caller_harms_nobody(router):
    """What was acknowledged stays, and the next stream works."""
    await create(router)
    forever = asyncio.Event()

    async def batches():
        yield pb.UpsertRequest(collection="docs", points=make_points("a"))
        await forever.wait()

    stream = router.stub.Upsert(batches())
    await stream.read()
    stream.cancel()
    answers = await upsert(router, pb.UpsertRequest(collection="docs", points=make_points("b")))
    assert answers[0].total_points == 1
    found = await router.stub.GetCollection(pb.GetCollectionRequest(name="docs"))
    assert found.collection.num_points == 2
