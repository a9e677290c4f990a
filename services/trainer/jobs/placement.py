"""On which nodes the pods of jobs may run, and how urgent they are, as settings say it in JSON.

All of it is checked here, when the service starts: a Job that the cluster refuses would fail a
user's training hours later. Source: Kubernetes' reference of `core/v1`, PodSpec and Toleration.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

Toleration = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_FIELDS = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where pods may go. Everything empty: anywhere without taints."""

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    runtime_class: str = ""
    """"": the cluster's default."""
    priority_class: str = ""
    """"": the cluster's default."""

    @property
    def fields(self) -> dict[str, Any]:
        """As a pod's spec holds them; nothing of what is empty."""
        found = {
            "nodeSelector": self.node_selector,
            "tolerations": list(self.tolerations),
            "runtimeClassName": self.runtime_class,
            "priorityClassName": self.priority_class,
        }
        return {name: value for name, value in found.items() if value}


def read_node_selector(text: str | None) -> dict[str, str]:
    """Read labels of nodes, a JSON object.

    >>> read_node_selector('{"accelerator": "h200"}')
    {'accelerator': 'h200'}

    Raises:
        ValueError: it is none; the message goes on after the setting's name.
    """
    labels = _read(text or "{}")
    example = '{"accelerator": "h200"}'
    if not isinstance(labels, dict):
        raise ValueError(f"must be a JSON object of labels of nodes, such as {example}")
    for key, value in labels.items():
        if not (_KEY.fullmatch(key) and isinstance(value, str) and _VALUE.fullmatch(value)):
            raise ValueError(
                f"must hold labels of nodes, such as {example}; {key!r}: {value!r} can be none"
            )
    return labels


def read_tolerations(text: str | None) -> tuple[Toleration, ...]:
    """Read taints that are tolerated, a JSON list of tolerations as pods take them.

    >>> read_tolerations('[{"key": "nvidia.com/gpu", "operator": "Exists"}]')
    ({'key': 'nvidia.com/gpu', 'operator': 'Exists'},)

    Raises:
        ValueError: it is none; the message goes on after the setting's name.
    """
    listed = _read(text or "[]")
    example = '[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]'
    if not isinstance(listed, list):
        raise ValueError(f"must be a JSON list of tolerations, such as {example}")
    for number, found in enumerate(listed, 1):
        if problem := _problem(found):
            raise ValueError(
                f"must hold tolerations, such as {example}; in the {number}. {problem}"
            )
    return tuple(listed)


def check_class(name: str | None) -> str | None:
    """Return the name of a runtime or priority class.

    Raises:
        ValueError: none can be called so; the message goes on after the setting's name.
    """
    if name and not _NAME.fullmatch(name):
        raise ValueError(
            f"must be a name of Kubernetes, of a-z, 0-9, '-' and '.', such as nvidia; got {name!r}"
        )
    return name


def _read(text: str) -> Any:  # noqa: ANN401 (whatever JSON holds)
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"must be JSON, got {text[:64]!r}") from None


def _problem(found: Any) -> str:  # noqa: ANN401
    """Say what is wrong with a toleration; "": nothing."""
    if not isinstance(found, dict):
        return "there is no object"
    if unknown := sorted(set(found) - set(_FIELDS)):
        return f"there is {unknown[0][:32]!r}, which is not one of {', '.join(_FIELDS)}"
    for name, kind in _FIELDS.items():
        if name in found and type(found[name]) is not kind:
            return f"{name} must be {'a whole number' if kind is int else 'text'}"
    operator = found.get("operator", "Equal")
    if operator not in ("Equal", "Exists"):
        return f"operator must be Equal or Exists, not {operator[:32]!r}"
    if operator == "Exists" and found.get("value"):
        return "value must be left out, as the operator is Exists"
    key = found.get("key", "")
    if (key and not _KEY.fullmatch(key)) or not _VALUE.fullmatch(found.get("value", "")):
        return "key and value must be those of a taint"
    if not key and operator != "Exists":
        return "key may be left out only where the operator is Exists"
    if found.get("effect", "NoExecute") not in _EFFECTS:
        return f"effect must be one of {', '.join(_EFFECTS)}"
    if "tolerationSeconds" in found and found.get("effect") != "NoExecute":
        return "tolerationSeconds needs the effect NoExecute"
    return ""
