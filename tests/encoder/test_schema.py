"""Requests made from the service's own description, right and wrong: none is a server's error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 25
CALLS = [("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("GET", "/v1/models/{model}")]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_no_request_within_the_description_fails(encoder_process, method, path):
    """Whatever the description allows, or forbids, is answered below 500 and as described."""
    schema = schemathesis.openapi.from_url(f"{encoder_process.http}/openapi.json")
    operation = schema[path][method]
    statuses = set()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        case = data.draw(
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        response = case.call(base_url=encoder_process.http, timeout=30)
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text

    check()
    assert statuses
