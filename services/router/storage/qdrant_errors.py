"""What the Qdrant client raises, as our own errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.router.storage.store import not_found
from services.shared.errors import (
    NotFound,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
    peer_errors,
)


@contextmanager
def engine_errors(name: str = "") -> Iterator[None]:
    """Turn what the client raises into our errors; `name` is the collection's."""
    try:
        with peer_errors("Qdrant server"):
            yield
    except NotFound as error:
        raise not_found(name) from error
    except ResourceExhaustedResponse as error:
        raise Overloaded("the Qdrant server is overloaded; try again shortly") from error
    except (UnexpectedResponse, ResponseHandlingException) as error:
        raise Unavailable("the Qdrant server cannot be reached or is not ready") from error
    except TimeoutError as error:
        raise TookTooLong("the Qdrant server did not answer in time") from error
    except KeyError as error:
        raise not_found(name) from error  # the in-memory twin, of a point that is not there
    except ValueError as error:
        # The in-memory twin's only kind of error.
        if name and f"{name} not found" in str(error):
            raise not_found(name) from error
        if "is not found in the collection" in str(error):  # a named vector
            raise ServiceError("the engine has no such vector") from error
        raise
    except ServiceError as error:
        if isinstance(error.__cause__, grpc.aio.AioRpcError) and type(error) is ServiceError:
            raise Unavailable("the Qdrant server failed; see its log") from error
        raise
