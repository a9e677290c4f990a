"""Who may import what: the rules of the architecture, read from the source of every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"

# {foreign package: modules that may import it}; what is not listed is free.
OWNERS = {
    "torch": (
        "services.shared.model",
        "services.shared.cross_encoder",
        "services.shared.loading",
        "services.shared.tower",
        "services.shared.pair_tower",
        "services.shared.forward",
        "services.shared.oracle",
        "services.shared.choice",
        "services.shared.engines",
        "services.shared.int8",
        "services.shared.int8_linear",
        "services.shared.packing",
        "services.shared.images",
        "services.shared.flops",
        "services.trainer.training",
        "services.trainer.results",
    ),
    "transformers": (
        "services.shared.loading",
        "services.shared.processor",
        "services.shared.packing",
        "services.trainer.training",
        "services.trainer.results",
    ),
    "sentence_transformers": ("services.shared.loading", "services.trainer"),
    "numba": ("services.shared.kernels",),
    "PIL": ("services.shared.images",),
    "qdrant_client": (
        "services.router.storage.qdrant",
        "services.router.storage.qdrant_companions",
        "services.router.storage.qdrant_config",
        "services.router.storage.qdrant_errors",
        "services.router.storage.qdrant_indexes",
        "services.router.storage.qdrant_query",
        "services.router.storage.qdrant_resize",
        "services.router.storage.qdrant_retry",
        "services.router.storage.qdrant_search",
        "services.router.storage.conditions",
    ),
    "qdrant_edge": (
        "services.router.storage.edge_worker",
        "services.router.storage.edge_shard",
        "services.router.hybrid.text_index",  # its tokeniser
    ),
    "sqlalchemy": (
        "services.shared.database",
        "services.shared.files",
        "services.router.changes.agreements",
        "services.router.vector_stores.stores",
        "services.router.vector_stores.files",
        "services.router.vector_stores.rows",
        "services.router.vector_stores.work",
        "services.trainer.jobs.jobs",
        "services.trainer.models.registry",
        "services.trainer.models.promotion",
        "services.trainer.models.served",
        "services.trainer.jobs.leases",
        "services.trainer.jobs.rows",
    ),
    "python_multipart": ("services.shared.multipart",),
    "pypdf": ("services.router.vector_stores.documents",),
    "fsspec": ("services.shared.blobs", "services.trainer.data.bucket"),
    "httpcore": ("services.trainer.data.download",),
    "matplotlib": ("services.trainer.results.report", "services.router.recall.calibration_plot"),
    "opentelemetry": (
        "services.shared.trace",
        "services.shared.trace_export",
        "services.shared.trace_file",
    ),
    "uvicorn": ("services.shared.server", "services.shared.connection"),
    "typer": (
        "services.cli.main",
        "services.cli.collection_commands",
        "services.cli.model_commands",
        "services.cli.operator_commands",
        "services.cli.version_commands",
        "services.cli.peer",
    ),
    "rich": ("services.cli",),
    "ray": ("services.cli.bulk.ray_engine",),
    "pyarrow": ("services.cli.bulk.readers", "services.trainer.data.tables"),
    "pickle": (),
    "multiprocessing": (),
    "services.shared.pb": (
        "services.encoder.service",
        "services.encoder.wire",
        "services.router.service",
        "services.router.wire",
        "services.router.recall.calibration_wire",
        "services.router.recall.evaluate_wire",
        "services.router.hybrid.hybrid_wire",
        "services.router.encoder_client",
        "services.router.trainer_client",
        "services.router.rpcs_http",
        "services.trainer.service",
        "services.trainer.models.calls",
        "services.trainer.models.models_wire",
        "services.trainer.models.encoder_client",
        "services.trainer.models.router_client",
        "services.trainer.wire",
        "services.cli",
    ),
    "services.shared.model": ("services.encoder", "services.trainer"),
    "services.shared.cross_encoder": ("services.encoder",),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SERVICES.rglob("*.py")):
        if "pb" not in path.parts:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(name: str, tree: ast.Module) -> Iterator[str]:
    """Name each import of a module that the rules forbid."""
    service = ".".join(name.split(".")[:2])
    for imported in imports(tree):
        if within(imported, "services") and service != "services.cli":
            allowed = (service, "services.shared")
            if imported != "services" and not any(within(imported, a) for a in allowed):
                yield f"{name} imports {imported}: a service imports itself and services.shared"
        for package, owners in OWNERS.items():
            own = any(within(name, owner) for owner in (*owners, package))
            if within(imported, package) and not own:
                yield f"{name} imports {imported}: only {owners or 'nobody'} may"


def test_every_import_keeps_the_rules():
    """Services meet on the wire or on disk, and each foreign package has its owners."""
    found = [text for name, tree in modules() for text in violations(name, tree)]
    assert not found, "\n".join(found)


def test_the_rules_see_a_planted_violation():
    """The checker is able to fail."""
    planted = "import torch\nfrom services.trainer import jobs\nfrom services.shared.pb import x"
    assert (
        len({v.split(":")[0] for v in violations("services.router.plan", ast.parse(planted))}) >= 3
    )


def test_the_router_needs_no_torch():
    """Nothing that the router imports, however far, imports torch."""
    trees = dict(modules())
    seen: set[str] = set()
    waiting = [name for name in trees if within(name, "services.router")]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = set(imports(trees[name]))
        assert not any(within(imported, "torch") for imported in found), name
        waiting += [imported for imported in found if imported in trees]
    assert "services.shared.vectors" in seen


# Calls that read, write, start or register something.
ACTIONS = {
    "open", "print", "input", "getenv", "read_text", "read_bytes", "write_text", "mkdir", "exists",
    "run", "Popen", "connect", "create_engine", "register", "start", "configure", "basicConfig",
    "is_available", "now", "time", "perf_counter", "seed", "manual_seed", "set_num_threads",
}  # fmt: skip


def test_nothing_acts_at_import():
    """A module's top level defines things; it reads, writes, starts and registers nothing."""
    for name, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.For | ast.With):
                for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
                    called = ast.unparse(call.func).rpartition(".")[2]
                    assert called not in ACTIONS, f"{name} calls {ast.unparse(call.func)} at import"


def test_only_entry_points_read_the_environment():
    """Settings come in through one door."""
    for name, tree in modules():
        reads = any(within(i, "os.environ") or i == "os.getenv" for i in imports(tree)) or any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
            for node in ast.walk(tree)
        )
        assert not reads or name in ENVIRONMENT_READERS, name


# The commands are the entry points; the settings are read for it, and look for misspelt ones; the
# next two hand the environment on to a child process; the last looks for the user's cache.
ENVIRONMENT_READERS = {
    "services.cli.main",
    "services.cli.collection_commands",
    "services.cli.processes",
    "services.shared.settings",
    "services.trainer.jobs.launcher",
    "services.shared.folder",
}
