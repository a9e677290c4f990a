"""Evaluations on the wire: protobuf on one side, the router's own types on the other."""

from services.router.hybrid.hybrid_wire import read_cross_encoder, read_hybrid
from services.router.recall.evaluate import Contender, Evaluation, Labelled, SliceScores
from services.router.search import DEFAULT_LIMIT
from services.router.wire import read_plan, write_plan
from services.shared.pb import router_pb2 as pb


def read_evaluate(request: pb.EvaluateRequest) -> tuple[list[Labelled], list[Contender], int]:
    """Return queries, contenders and the limit."""
    return (
        [_read_query(query) for query in request.queries],
        [_read_contender(contender) for contender in request.contenders],
        request.limit or DEFAULT_LIMIT,
    )


def _read_query(query: pb.LabelledQuery) -> Labelled:
    kind = query.WhichOneof("query")
    return Labelled(
        relevant=dict(query.relevant),
        text=query.text if kind == "text" else None,
        vector=query.vector if kind == "vector" else None,
        slice=query.slice,
    )


def _read_contender(contender: pb.Contender) -> Contender:
    return Contender(
        contender.collection,
        read_plan(contender.plan) if contender.HasField("plan") else None,
        contender.recall_target if contender.HasField("recall_target") else None,
        contender.space_id,
        read_hybrid(contender.hybrid) if contender.HasField("hybrid") else None,
        read_cross_encoder(contender.cross_encoder)
        if contender.HasField("cross_encoder")
        else None,
    )


def write_evaluation(evaluation: Evaluation) -> pb.Evaluation:
    return pb.Evaluation(
        plans=[write_plan(found.plan) for found in evaluation.found],
        overall=_write_slice(evaluation.overall),
        slices=map(_write_slice, evaluation.slices),
        worst=[
            pb.QueryChange(query=change.query, before=change.before, after=change.after)
            for change in evaluation.worst
        ],
    )


def _write_slice(one: SliceScores) -> pb.SliceScores:
    return pb.SliceScores(
        slice=one.slice,
        num_queries=one.num_queries,
        scores=[
            pb.QualityScores(ndcg=scores.ndcg, recall=scores.recall, mrr=scores.mrr)
            for scores in one.scores
        ],
        num_better=one.num_better,
        num_worse=one.num_worse,
    )
