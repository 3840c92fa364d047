"""Programs written for vortex_torch (arXiv 2606.06453), read in unchanged.

A stand-in for every operator records into our graph, in the same jail as any other source. Shapes
`[lead, D0, D1]` are checked for one concrete model; the program that comes out is symbolic and fits every
model its sizes divide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vortex_core.dialects.vortex_torch import modules
from vortex_core.dialects.vortex_torch.session import Cache, Session, current
from vortex_core.dialects.vortex_torch.settings import Settings
from vortex_core.flow import vtensor
from vortex_core.flow.emit import emit as write_source
from vortex_core.flow.trace import Traced, doc_of
from vortex_core.flow.vflow import plain_name
from vortex_core.flow.vtensor import emit
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.lint import lint
from vortex_core.ir.program import Program
from vortex_core.ir.types import Extent
from vortex_core.ir.verify import verify
from vortex_core.sandbox.allowlist import MODULES, Rules

RULES = Rules(
    modules={"math": MODULES["math"], "__future__": MODULES["__future__"], "torch": None, "typing": None},
    package="vortex_torch",
    imports=frozenset({"math", "torch"}),
    private=True,
    hidden=frozenset({"_REGISTRY"}),
)

importer = modules.importer


def read(
    namespace: Mapping[str, Any], registry: Mapping[str, type], options: Mapping[str, Any] | None, module: str
) -> Traced:
    """Trace the flow of an executed module.

    Args:
        namespace: the module's names.
        registry: classes by registered name.
        options: the program's JSON.
        module: `__name__` of classes the file itself defines.

    Raises:
        VortexError: `VF08x`, or whatever is wrong with the program itself.
    """
    wanted = Settings.read(options, is_mla=False).module_name
    name, cls = _choose(namespace, registry, wanted, module)
    settings = Settings.read(options, is_mla=issubclass(cls, modules.vFlowMLA))
    session = _trace(cls, Session(settings))
    unused = frozenset(
        order for order, x, reads, result in session[0].scans if not result.reads and x.reads > reads
    )
    if unused:
        session = _trace(cls, Session(settings, in_place=unused))
    done, program = session
    verify(program)
    canonical = program.canonical()
    knobs = settings.knobs(done.streams)
    warnings = lint(program, canonical, knobs)
    doc = doc_of(cls)
    name = plain_name(name) if isinstance(name, str) else "converted"
    source = write_source(canonical, knobs, name, doc)
    return Traced(
        name,
        canonical,
        knobs,
        doc,
        source=source,
        original=program,
        warnings=tuple(w.to_json() for w in warnings),
    )


def _choose(
    namespace: Mapping[str, Any], registry: Mapping[str, type], wanted: str | None, module: str
) -> tuple[str, type[modules.vFlow]]:
    found = {n: c for n, c in registry.items() if isinstance(c, type) and issubclass(c, modules.vFlow)}
    if not found:  # nothing is registered: the class that no other one derives from
        own = [
            c
            for c in namespace.values()
            if isinstance(c, type) and issubclass(c, modules.vFlow) and c.__module__ == module
        ]
        parents = {base for c in own for base in c.__mro__[1:]}
        found = {c.__name__: c for c in own if c not in parents}
    if wanted in found:
        return wanted, found[wanted]
    if len(found) != 1 or wanted is not None:
        raise mistakes.DIALECT_CLASS.error(
            found=", ".join(found) or "none", wanted="" if wanted is None else f", not {wanted!r}"
        )
    return next(iter(found.items()))


def _trace(cls: type[modules.vFlow], session: Session) -> tuple[Session, Program]:
    settings, sizes = session.settings, session.settings.sizes
    flow = cls()
    flow.block_size, flow.head_dim = settings.block_size, sizes["D"]
    if isinstance(flow, modules.vFlowMLA):
        flow.kv_lora_rank, flow.qk_rope_head_dim, flow.latent_dim = sizes["N"], sizes["R"], sizes["D"]
        session.declare(flow.create_cache(settings.block_size, sizes["N"], sizes["R"]))
    else:
        session.declare(flow.create_cache(settings.block_size, sizes["D"]))
    writes: dict[str, int] = {}

    def cache_stage() -> None:
        flow.forward_cache(Cache(session), session.loc, session.context)
        writes.update(session.end_cache())

    def index_stage() -> None:
        q = session.view(
            emit("q", builder=session.builder),
            ((("head", Extent.parse("G")),), (("dim", Extent.parse("D")),)),
            False,
        )
        flow.forward_indexer(q, session.output, Cache(session), session.context)

    pages = session.builder
    _within(session, pages, cache_stage)
    steps = GraphBuilder("index")
    _within(session, steps, index_stage)
    if session.result is None:
        raise mistakes.DIALECT_OUTPUT.error(found="no output operator")
    _within(session, pages, lambda: writes.update(session.constants()))
    saves = {f.state: f.save._id for f in session.fields.values() if f.save is not None}
    index: Graph = steps.graph(saves, session.result.tensor._id)
    return session, Program(session.states(), pages.graph(writes), index)


def _within(session: Session, builder: GraphBuilder, call: Callable[[], None]) -> None:
    session.builder = builder
    before, here = vtensor.current.set(builder), current.set(session)
    try:
        call()
    finally:
        vtensor.current.reset(before)
        current.reset(here)


# Traced before the jail closes, so that nothing is imported afterwards.
WARM_UP = """
from vortex_torch.flow import vFlow, register
from vortex_torch.indexer import topK, Mean, GeMM
from vortex_torch.cache import MeanInterleave

@register("warm_up")
class WarmUp(vFlow):
    def __init__(self):
        super().__init__()
        self.mean, self.gemm, self.fold = Mean(dim=1), GeMM(), MeanInterleave(1, 8)
        self.mean2, self.top = Mean(dim=1), topK()
    def create_cache(self, block_size, head_dim):
        return {"c": (block_size // 8, head_dim)}
    def forward_cache(self, cache, loc, ctx):
        self.fold(cache["k"], cache["c"], loc=loc, ctx=ctx)
    def forward_indexer(self, q, o, cache, ctx):
        self.top(self.mean2(self.gemm(self.mean(q, ctx=ctx), cache["c"], ctx=ctx), ctx=ctx), o, ctx=ctx)
"""
