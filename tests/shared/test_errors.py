"""Every error keeps its class across both wires."""

import grpc
import pytest

from services.shared import errors
from services.shared.errors import ServiceError, outcome_of_status, peer_errors
from services.shared.limits import OverLimit


def tree(kind):
    return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]


ALL = tree(ServiceError)


@pytest.mark.parametrize("kind", ALL)
def test_each_error_comes_back_from_grpc(kind):
    """A status is translated back into the class that has it, or its nearest parent."""
    rpc_error = grpc.aio.AioRpcError(
        kind.grpc_code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="why"
    )
    with pytest.raises(ServiceError) as caught, peer_errors("encoder"):
        raise rpc_error
    assert issubclass(kind, type(caught.value))
    assert caught.value.grpc_code == kind.grpc_code
    assert "why" in caught.value.message


@pytest.mark.parametrize(
    ("metadata", "retry_after_s"),
    [([("retry-after", "7")], 7), ([("retry-after", "soon")], 1), ([], 1)],
)
def test_a_peers_time_to_wait_is_kept(metadata, retry_after_s):
    """In whole seconds, as our services send it; from a peer that does not, the class's own."""
    rpc_error = grpc.aio.AioRpcError(
        errors.Overloaded.grpc_code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata)
    )
    with pytest.raises(errors.Overloaded) as caught, peer_errors("encoder"):
        raise rpc_error
    assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize("kind", ALL)
def test_each_error_has_openais_body(kind):
    """All four keys are there for every class."""
    body = kind("what would be accepted", "field").openai_body()["error"]
    assert body["message"] == "what would be accepted"
    assert body["param"] == "field"
    assert body.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", ALL)
def test_http_status_and_grpc_code_name_the_same_outcome(kind):
    """Metrics of both wires use one vocabulary."""
    outcome = outcome_of_status(kind.http_status)
    same_status = [k for k in ALL if k.http_status == kind.http_status]
    assert outcome in {k.grpc_code.name for k in same_status}


def test_only_errors_worth_a_retry_say_so():
    """A caller retries what may pass, and nothing else."""
    retried = {kind for kind in ALL if kind.retry_after_s}
    assert retried == {errors.Overloaded, errors.Unavailable, OverLimit}
