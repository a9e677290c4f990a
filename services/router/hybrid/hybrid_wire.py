"""Words and cross-encoders on the wire: protobuf on one side, our own types on the other."""

from services.router.cross_encoder import CrossEncoder, CrossEncoderReport
from services.router.hybrid.hybrid import Fusion, Hybrid
from services.router.hybrid.text_index import TextIndex
from services.shared.errors import InvalidRequest
from services.shared.pb import router_pb2 as pb

_FUSIONS: dict[int, Fusion] = {
    pb.FUSION_UNSPECIFIED: "score",
    pb.FUSION_SCORE: "score",
    pb.FUSION_RANK: "rank",
}


def read_hybrid(message: pb.Hybrid) -> Hybrid:
    if message.fusion not in _FUSIONS:
        raise InvalidRequest("hybrid: fusion must be unset, FUSION_SCORE or FUSION_RANK", "hybrid")
    weight = message.weight if message.HasField("weight") else None
    return Hybrid(message.text, _FUSIONS[message.fusion], weight, message.candidates)


def read_cross_encoder(message: pb.CrossEncoder) -> CrossEncoder:
    return CrossEncoder(message.model, message.candidates)


def write_cross_encoder(report: CrossEncoderReport) -> pb.CrossEncoderReport:
    return pb.CrossEncoderReport(
        model=report.model,
        candidates=report.candidates,
        truncated=report.truncated,
        seconds=report.seconds,
    )


def read_text_index(message: pb.TextIndex) -> TextIndex:
    return TextIndex(message.language) if message.language else TextIndex()


def write_text_index(text_index: TextIndex) -> pb.TextIndex:
    return pb.TextIndex(language=text_index.language)
