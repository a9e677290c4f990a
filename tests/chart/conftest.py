import pytest

pytest.importorskip("helm_python", reason="the Helm engine is not installed: pip install '.[dev]'")
pytest.importorskip("kubernetes_validate", reason="not installed: pip install '.[dev]'")
