"""`matryoshka search`: what it shows is what the router answers, or one clear sentence."""

import json
from dataclasses import replace

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from services.cli.filter import doubt, read_filter
from services.cli.main import app
from services.cli.plan import describe, read_plan
from services.cli.search import Options, moves, next_step, show_hits, summary
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.cli.test_commands import matryoshka

KINDS = ["wooden", "painted", "broken", "tiny", "old", "red", "lost", "new"]
THINGS = ["doll", "bridge", "river", "train", "clock", "horse", "boat", "house"]
PLACES = ["forest", "kitchen", "desert", "museum"]
TEXTS = [
    f"a {kind} {thing} in the {place}" for kind in KINDS for thing in THINGS for place in PLACES
]
QUERY = "nested dolls"
ASKED = Options("", None, "docs", QUERY, None, None, None, None, [], False, False)


@pytest.fixture(scope="module")
def router(process):
    """A stub; with it `stories` and `worded`, of real texts, and the calibrated `measured`."""
    with grpc.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)
        for name in ("stories", "measured"):
            made = stub.CreateCollection(
                pb.CreateCollectionRequest(name=name, model="default", sizes=[pb.Size(dim=32)])
            )
        points = [
            pb.Point(
                id=f"story-{number}", text=text,
                attributes={
                    "year": pb.AttributeValue(int_value=2000 + number % 20),
                    "place": pb.AttributeValue(string_value=text.rpartition(" ")[2]),
                },
            )
            for number, text in enumerate(TEXTS)
        ]  # fmt: skip
        stub.CreateCollection(
            pb.CreateCollectionRequest(name="worded", model="default", text_index=pb.TextIndex())
        )
        for name in ("stories", "worded"):
            list(stub.Upsert(iter([pb.UpsertRequest(collection=name, points=points)])))
        calibrate(stub, made.collection.space_id)
        yield stub
        for name in ("stories", "measured", "worded"):
            stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))


def calibrate(stub, space_id):
    """Fill `measured` with so many points that plans are faster than exact search."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((4300, 384)) * np.geomspace(1, 0.02, 384)).astype("<f4")
    batches = [
        pb.UpsertRequest(
            collection="measured",
            points=[pb.Point(id=str(number)) for number in range(begin, begin + 1000)],
            vectors=rows[begin : begin + 1000].tobytes(),
            space_id=space_id,
        )
        for begin in range(0, 4000, 1000)
    ]
    list(stub.Upsert(iter(batches)))
    request = pb.CalibrateRequest(
        collection="measured", recall_target=0.8, vectors=rows[4000:].tobytes(), space_id=space_id
    )
    list(stub.Calibrate(request))


@pytest.fixture
def search(process, router):
    def run(*arguments):
        command = ["search", *arguments, "--router", process.grpc]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"})

    return run


def rows(output):
    """Cells of a table's rows, without its head."""
    lines = (line for line in output.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_it_shows_the_hits_and_what_found_them(process, router):
    """As a user types it; of a collection that was not calibrated it says how to do that."""
    ended = matryoshka(
        "search", "stories", QUERY, "--limit", "3", "--router", process.grpc, COLUMNS="120"
    )
    assert ended.returncode == 0, ended.stderr
    answer = router.Search(pb.SearchRequest(collection="stories", text=QUERY, limit=3))
    assert rows(ended.stdout) == [
        [str(rank), f"{hit.score:.4f}", hit.id, hit.text,
         f"place={hit.attributes['place'].string_value}, year={hit.attributes['year'].int_value}"]
        for rank, hit in enumerate(answer.hits, 1)
    ]  # fmt: skip
    assert "100 by 32, rerank by 384: no recall is promised; " in ended.stdout
    assert " ms in the engine, " in ended.stdout
    assert "`matryoshka calibrate stories` lets searches state a recall" in ended.stdout


def test_json_holds_what_the_router_answered(search, router):
    """The same hits, scores and attributes, of those that the filter lets through."""
    ended = search("stories", QUERY, "--json", "--filter", "place=museum", "--filter", "year>=2010")
    answer = json.loads(ended.stdout)
    museum = pb.Filter(
        equals=pb.Equals(key="place", value=pb.AttributeValue(string_value="museum"))
    )
    late = pb.Filter(range=pb.Range(key="year", gte=2010))
    both = pb.Filter(all=pb.FilterList(filters=[museum, late]))
    wanted = router.Search(pb.SearchRequest(collection="stories", text=QUERY, filter=both))
    assert len(wanted.hits) == 10
    assert [(hit["rank"], hit["id"], hit["score"], hit["text"]) for hit in answer["hits"]] == [
        (rank, hit.id, pytest.approx(hit.score, abs=1e-6), hit.text)
        for rank, hit in enumerate(wanted.hits, 1)
    ]
    for hit in answer["hits"]:
        assert hit["attributes"]["place"] == "museum"
        assert hit["attributes"]["year"] >= 2010
        assert hit["shortlist_rank"] is None
    assert (answer["promise"], answer["stages"], answer["recall"]) == (None, None, None)
    assert [stage["dim"] for stage in answer["plan"]] == [32, 384]
    assert answer["encode_seconds"] > 0 < answer["search_seconds"]


def test_explain_tells_each_stage_and_how_far_the_rerank_moved_hits(search, router):
    """The places in the shortlist are the router's, and so is the recall of this search."""
    plan = pb.Plan(stages=[pb.Stage(dim=32, candidates=20, exact=True), pb.Stage(dim=384)])
    wanted = router.Search(
        pb.SearchRequest(
            collection="stories", text=QUERY, plan=plan, explain=True, measure_recall=True
        )
    )
    places = [hit.shortlist_rank for hit in wanted.hits]
    assert places != sorted(places)
    ended = search("stories", QUERY, "--plan", "32:20:exact,384", "--explain")
    assert ended.exit_code == 0, ended.stderr
    shown = rows(ended.stdout)
    assert [int(row[2]) for row in shown if len(row) == 6] == places
    assert [row[:2] for row in shown if len(row) == 3] == [["32", "20"], ["384", "10"]]
    assert "20 by 32 (scan), rerank by 384: no recall is promised" in ended.stdout
    assert moves(places) in ended.stdout
    assert f"recall of this search: {wanted.recall:.2f}, against exact search" in ended.stdout


def test_a_calibration_promises_a_recall(search, router):
    """The line says what the router does, of the target that was asked for."""
    request = pb.SearchRequest(collection="measured", text=QUERY, recall_target=0.6)
    wanted = router.Search(request)
    assert wanted.promise.met
    assert not wanted.promise.exact
    ended = search("measured", QUERY, "--recall", "0.6")
    assert ended.exit_code == 0, ended.stderr
    plan = describe(wanted.plan.stages)
    promised = f"{plan}: sure of a recall of {wanted.promise.recall:.3f} (target 0.6); "
    assert promised in ended.stdout
    assert "calibrate" not in ended.stdout


def test_exact_search_loses_nothing(search):
    """Asked for by its name, or as nothing else was measured: then with what to do about it."""
    ended = search("stories", QUERY, "--plan", "exact")
    assert "exact search at 384: loses nothing; " in ended.stdout
    assert "calibrate" not in ended.stdout
    ended = search("stories", QUERY, "--recall", "0.9", "--limit", "30")
    assert ended.exit_code == 0, ended.stderr
    assert "exact search at 384: loses nothing; " in ended.stdout
    assert "collection 'stories' is not calibrated" in ended.stdout
    assert "`matryoshka calibrate stories --limit 30` finds what is faster" in ended.stdout


def test_a_target_that_is_missed_is_told_and_ends_with_1(search):
    """The hits are there all the same; the router's sentence and the next step stand below."""
    hurried = ("measured", QUERY, "--recall", "0.999", "--max-ms", "0.000001")
    ended = search(*hurried)
    assert ended.exit_code == 1
    assert len(rows(ended.stdout)) == 10
    assert "sure of a recall of only " in ended.stdout
    assert "no plan is within the budgets; the cheapest, which ran, " in ended.stdout
    assert "`matryoshka calibrate measured --show` tells " in ended.stdout
    ended = search(*hurried, "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout)["promise"]["met"] is False


def test_a_time_that_is_missed_is_told_as_that(search):
    """The recall is kept: it is not called little, and nobody is sent to ask for less of it."""
    ended = search("measured", QUERY, "--recall", "0.05", "--max-ms", "0.000001")
    assert ended.exit_code == 1
    assert "sure of a recall of " in ended.stdout
    assert "(target 0.05), but no plan is within 1e-06 ms; " in ended.stdout
    assert "only" not in ended.stdout
    assert ended.stdout.endswith(": allow more --max-ms\n")


def test_exact_search_that_is_late_still_loses_nothing():
    """Where it is the fastest plan of all, as in a small collection."""
    plan = pb.Plan(stages=[pb.Stage(dim=384, exact=True)])
    missed = pb.Promise(recall_target=0.99, recall=1, exact=True, note="no plan is that fast")
    answer = pb.SearchResponse(plan=plan, promise=missed, search_seconds=0.001)
    hurried = replace(ASKED, max_ms=0.0001)
    assert summary(answer, hurried).startswith(
        "exact search at 384: loses nothing, but no plan is within 0.0001 ms; 1.00 ms in the"
    )
    assert next_step(answer, hurried).endswith("is sure of: allow more --max-ms")


def test_with_a_filter_what_was_measured_without_one_is_no_promise(search):
    """The line says of which searches it is sure, and the next step shows what live ones keep."""
    ended = search("measured", QUERY, "--recall", "0.6", "--filter", "place=museum")
    assert ended.exit_code == 0, ended.stderr
    assert " without a filter (target 0.6); with this one it was not measured; " in ended.stdout
    assert "`matryoshka recall measured` shows what live searches keep\n" in ended.stdout
    ended = search("stories", QUERY, "--recall", "0.6", "--filter", "place=museum")
    assert "exact search at 384: loses nothing; " in ended.stdout


def test_words_and_vectors_make_one_ranking(search, router):
    """What each side says of a hit stands beside its score; the places in the shortlist do not."""
    text = "a tiny museum"
    request = pb.SearchRequest(collection="worded", text=text, hybrid=pb.Hybrid(), explain=True)
    wanted = router.Search(request)
    assert {hit.HasField("bm25") for hit in wanted.hits} == {True}
    ended = search("worded", text, "--words", "--explain")
    assert ended.exit_code == 0, ended.stderr
    assert [row[1:4] + row[5:6] for row in rows(ended.stdout) if len(row) > 5] == [
        [f"{hit.score:.4f}", f"{hit.cosine:.4f}", f"{hit.bm25:.4f}", hit.id] for hit in wanted.hits
    ]
    assert "; by words: 10 hits for 2 words that count, " in ended.stdout
    assert "the rerank moved" not in ended.stdout
    answer = json.loads(search("worded", text, "--words", "--json").stdout)
    assert [(hit["id"], hit["bm25"]) for hit in answer["hits"]] == [
        (hit.id, pytest.approx(hit.bm25)) for hit in wanted.hits
    ]
    assert answer["words"]["terms"] == 2
    alone = json.loads(search("worded", text, "--json").stdout)
    assert (alone["words"], alone["hits"][0]["bm25"]) == (None, None)


def test_nothing_found_is_said(search):
    ended = search("stories", QUERY, "--filter", "place=nowhere")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.startswith("nothing was found that the filter lets through\n")


@pytest.mark.parametrize("condition", ["plcae=museum", 'year="2010"', "place>2"])
def test_a_filter_that_lets_nothing_through_is_doubted(search, condition):
    """What points do have is told beside the output, which stays as it is, also as JSON."""
    told = (
        "--filter lets no point through: the 10 nearest without it have place (a string), year "
        "(a number); names and kinds of values must be the same\n"
    )
    ended = search("stories", QUERY, "--filter", condition)
    assert (ended.exit_code, ended.stderr) == (0, told)
    ended = search("stories", QUERY, "--filter", condition, "--json")
    assert json.loads(ended.stdout)["hits"] == []
    assert ended.stderr == told
    assert search("stories", QUERY, "--filter", "place=museum").stderr == ""
    assert search("measured", QUERY, "--filter", condition).stderr.endswith(
        " 10 nearest without it have no attributes; names and kinds of values must be the same\n"
    )


def test_a_value_that_no_point_has_is_told_apart_from_a_wrong_name(search):
    """Whatever the conditions are, names and kinds are right."""
    told = "--filter lets no point through: there are such attributes, and none has such a value\n"
    for conditions in (["place=nowhere"], ["year>9999"], ["place!=museum", "year=-5"]):
        options = [word for condition in conditions for word in ("--filter", condition)]
        assert search("stories", QUERY, *options).stderr == told


def test_a_filter_is_not_doubted_where_there_is_nothing():
    assert doubt([], read_filter(["a=1"])) == "nothing is found without --filter either"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nobody", QUERY], 1, "alias 'nobody'; `matryoshka collections` shows what there is"),
        (["nobody", QUERY, "--plan", "exact"], 1, "no collection or alias 'nobody'"),
        (["stories", " "], 1, "TEXT must have 1 to "),
        (
            ["stories", QUERY, "--recall", "1.5"],
            1,
            "--recall must be above 0 and at most 1, got 1.5",
        ),
        (["stories", QUERY, "--limit", "100000"], 1, "--limit must be between 1 and 1000"),
        (["stories", QUERY, "--max-ms", "0"], 1, "--max-ms must be above 0"),
        (["stories", QUERY, "--max-ms", "5"], 1, "calibrated; run `matryoshka calibrate NAME`"),
        (["stories", QUERY, "--plan", "64:100,384"], 1, "--plan: "),
        (["stories", QUERY, "--words"], 1, "no text index; search without --words, or let an "),
        (["stories", QUERY, "--plan", "fast"], 2, "--plan must be exact, or stages such as"),
        (["stories", QUERY, "--plan", "exact", "--recall", "0.9"], 2, "give one or the other"),
        (["stories", QUERY, "--filter", "museum"], 2, "--filter must be KEY=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence(search, arguments, code, says):
    """With the exit code that tells a mistake of typing from what the router refuses."""
    ended = search(*arguments)
    assert ended.exit_code == code
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_conditions_are_read_by_what_their_values_look_like():
    """Numbers, booleans and strings, as the router keeps them apart."""

    def equals(key, **value):
        return pb.Filter(equals=pb.Equals(key=key, value=pb.AttributeValue(**value)))

    assert read_filter([]) is None
    assert read_filter(["lang=en"]) == equals("lang", string_value="en")
    assert read_filter(["year=2020"]) == equals("year", int_value=2020)
    assert read_filter(["share=0.5"]) == equals("share", double_value=0.5)
    assert read_filter(["new=true"]) == equals("new", bool_value=True)
    assert read_filter(['code="2020"']) == equals("code", string_value="2020")
    assert read_filter(["code=007"]) == equals("code", string_value="007")
    assert read_filter(["where=a=b > c"]) == equals("where", string_value="a=b > c")
    assert read_filter(["word=NaN"]) == equals("word", string_value="NaN")
    assert read_filter(["word=null"]) == equals("word", string_value="null")
    assert read_filter(["lang!=en"]) == pb.Filter(negated=equals("lang", string_value="en"))
    for sign, bound in ((">", "gt"), (">=", "gte"), ("<", "lt"), ("<=", "lte")):
        assert read_filter([f"year{sign}0"]) == pb.Filter(range=pb.Range(key="year", **{bound: 0}))
    both = read_filter(["lang=en", "year<2000"])
    assert list(both.all.filters) == [
        equals("lang", string_value="en"), pb.Filter(range=pb.Range(key="year", lt=2000)),
    ]  # fmt: skip
    for wrong in ("", "lang", "=en", "year>then", "year>true", f"year={2**63}", f"year<{10**400}"):
        with pytest.raises(InvalidRequest, match="--filter.*got"):
            read_filter([wrong])


def test_plans_are_read_as_they_are_written():
    """Sizes, candidates, ef and exact; anything else is refused with what would do."""
    assert read_plan("64:100,384") == pb.Plan(
        stages=[pb.Stage(dim=64, candidates=100), pb.Stage(dim=384)]
    )
    assert read_plan("32:90:ef=120, 64 nested:50, 384") == pb.Plan(
        stages=[
            pb.Stage(dim=32, candidates=90, ef=120),
            pb.Stage(dim=64, nested=True, candidates=50),
            pb.Stage(dim=384),
        ]
    )
    assert read_plan("64:exact") == pb.Plan(stages=[pb.Stage(dim=64, exact=True)])
    for wrong in ("", "64,", "64:", "64 nest:9", "-64", "64:1e3", "64:ef=", f"{2**32}", "²:9"):
        with pytest.raises(InvalidRequest, match="--plan must be exact, or stages such as"):
            read_plan(wrong)


def test_a_plan_is_told_as_it_runs():
    """Without ef a measured plan has no graph to walk; elsewhere the engine decides."""
    stages = read_plan("32:90:ef=120,64 nested:50,384").stages
    assert describe(stages) == "90 by 32 (ef 120), 50 by 64 nested (scan), rerank by 384"
    unmeasured = read_plan("64:100,384").stages
    assert describe(unmeasured, is_measured=False) == "100 by 64, rerank by 384"
    assert describe(read_plan("384:exact").stages) == "exact search at 384"
    assert describe(read_plan("384:ef=64").stages) == "384, ef 64"
    assert describe(read_plan("384").stages, is_measured=False) == "one stage at 384"


def test_the_farthest_move_is_told():
    assert moves([1, 2, 3]) == "the rerank moved 0 of 3 hits"
    assert moves([2, 1, 40, 4]) == "the rerank moved 3 of 4 hits, at most from place 40 to 3"


def test_what_documents_hold_is_shown_and_not_obeyed(capsys):
    """Neither markup, nor emoji codes, nor what a terminal would take for an order."""
    options = replace(ASKED, text="[red]:smile:")
    hit = pb.Hit(id="[b]1", text="[bold]:100:\x1b[31m\na\tb[/bold]", tenant=":ok:")
    hit.attributes["flag"].bool_value = True
    show_hits(pb.SearchResponse(collection="docs", hits=[hit]), options)
    shown = capsys.readouterr().out
    assert "docs: [red]:smile:" in shown
    (row,) = rows(shown)
    assert row[2:] == ["[b]1", ":ok:", "[bold]:100: [31m a b[/bold]", "flag=true"]
