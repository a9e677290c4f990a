"""What is shown of a running job as metrics."""

from prometheus_client import CollectorRegistry

from services.trainer.jobs.events import Event, EventLog
from services.trainer.jobs.progress import Progress
from services.trainer.metrics import TrainerMetrics


def test_a_jobs_steps_become_metrics(tmp_path):
    """Loss by size, gradient, utilisation of the newest step; tokens of all, those before a
    restart too, those before this service not."""
    registry = CollectorRegistry()

    def shown(name, **labels):
        return registry.get_sample_value(f"matryoshka_trainer_{name}", labels)

    events = EventLog(tmp_path)
    events.append(Event(phase="train", tokens=100, loss={16: 3.0}))
    progress = Progress(tmp_path, TrainerMetrics(registry))
    progress.look()
    assert shown("tokens_total") == 0
    loss = {16: 2.0, 32: 1.0}
    events.append(Event(phase="train", tokens=150, loss=loss, gradient_norm=0.5, utilization=0.25))
    progress.look()
    assert shown("tokens_total") == 50
    assert (shown("loss_nats", dim="16"), shown("loss_nats", dim="32")) == (2.0, 1.0)
    assert shown("gradient_norm_ratio") == 0.5
    assert shown("flops_utilization_ratio") == 0.25
    events.append(Event(phase="train", tokens=30, loss=loss))  # the process began anew
    progress.look()
    assert shown("tokens_total") == 80
    assert shown("flops_utilization_ratio") == 0.25
