"""One request, from a query and documents to scores; both wires call this and nothing else.

texts -> checked -> pairs of tokens -> batches -> one score for each document
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.encoder.admission import Admission, estimate_pair_tokens
from services.encoder.embed import Priority
from services.encoder.loaded import LoadedCrossEncoder
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import Models
from services.encoder.settings import EncoderSettings
from services.encoder.threads import SMALL_CHARS, Threads
from services.encoder.tokens import is_unicode
from services.shared.errors import InvalidRequest
from services.shared.packing import PairTokens


@dataclass(frozen=True, slots=True)
class RerankInput:
    """What a caller wants.

    Args:
        model: id or alias of a cross-encoder.
        query: what the documents are scored for.
        documents: texts.
        priority: which lane to wait in.
        remaining_s: until the caller stops waiting; None if he did not say.
    """

    model: str
    query: str
    documents: Sequence[str]
    priority: Priority = "interactive"
    remaining_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reranked:
    """The answer.

    Args:
        scores: for each document, in their order; the higher, the better it answers the query.
        num_tokens: for each document, read together with the query, after any cut.
        truncated: rows of the documents of whose pair something was cut.
    """

    model: LoadedCrossEncoder
    scores: list[float]
    num_tokens: list[int]
    truncated: list[int]


class Reranker:
    """Checks requests and leads them through tokenizer and batcher.

    Args:
        models: those that are served.
        admission: the door of the queue that all models share.
        threads: for tokenising.
        settings: bounds of a request.
        metrics: see there.
    """

    def __init__(
        self,
        models: Models,
        admission: Admission,
        threads: Threads,
        settings: EncoderSettings,
        metrics: EncoderMetrics,
    ) -> None:
        self._models = models
        self._admission = admission
        self._threads = threads
        self._settings = settings
        self._metrics = metrics

    async def rerank(self, wanted: RerankInput) -> Reranked:
        """Score.

        Raises:
            InvalidRequest: something in the request; checked before any forward pass.
            ModelNotFound: the model is not loaded.
            Overloaded: too much is waiting; nothing was done.
        """
        model = self._models.cross_encoder(wanted.model)
        num_chars = self._check(wanted)
        estimate = estimate_pair_tokens(wanted.query, wanted.documents, model.text_model.max_tokens)
        with self._admission.enter(
            model.batcher, wanted.priority, estimate, wanted.remaining_s
        ) as place:
            with self._metrics.stage("tokenize"):
                pairs, truncated = await self._threads.run(
                    num_chars <= SMALL_CHARS, self._read, model, wanted
                )
            num_tokens = [len(pair) for pair in pairs]
            self._metrics.pairs.inc(len(pairs))
            self._metrics.tokens.inc(sum(num_tokens))
            place.settle(sum(num_tokens))
            scores_B1 = await model.batcher.encode(pairs, place.lane, place.done)
        return Reranked(model, scores_B1[:, 0].tolist(), num_tokens, truncated)

    def _check(self, wanted: RerankInput) -> int:
        """Refuse what needs no tokenizer to be seen as wrong; return the number of characters."""
        count = len(wanted.documents)
        if not 1 <= count <= self._settings.max_texts:
            raise InvalidRequest(
                f"documents must have 1 to {self._settings.max_texts} texts, got {count}",
                "documents",
            )
        if not wanted.query:
            raise InvalidRequest("query must not be empty", "query")
        for row, document in enumerate(wanted.documents):
            if not document:
                raise InvalidRequest(f"document {row} must not be empty", "documents")
        num_chars = count * len(wanted.query) + sum(map(len, wanted.documents))
        if num_chars > self._settings.max_request_chars:
            raise InvalidRequest(
                f"a request may have at most {self._settings.max_request_chars} characters, this "
                f"one has {num_chars}, the query counted with each document; send it in parts",
                "documents",
            )
        return num_chars

    def _read(
        self, model: LoadedCrossEncoder, wanted: RerankInput
    ) -> tuple[list[PairTokens], list[int]]:
        if not is_unicode(wanted.query):
            raise InvalidRequest("query must be valid Unicode text", "query")
        for row, document in enumerate(wanted.documents):
            if not is_unicode(document):
                raise InvalidRequest(f"document {row} must be valid Unicode text", "documents")
        pairs, truncated = model.text_model.tokenize(wanted.query, wanted.documents)
        tokens = sum(map(len, pairs))
        if tokens > self._settings.max_request_tokens:
            raise InvalidRequest(
                f"a request may have at most {self._settings.max_request_tokens} tokens, this one "
                f"has {tokens}, the query counted with each document; send it in parts",
                "documents",
            )
        return pairs, truncated
