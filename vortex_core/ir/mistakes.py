"""The catalogue of language errors: every way to write a wrong program, once, with its rule and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vortex_core.errors import Fault, Location, VortexError, declare
from vortex_core.text import visible

_FACT = 1_000  # characters of a fact that the mending of an error may look at
_NAME = 100  # characters of a name that is compared with those known
Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Mistake:
    """One kind of mistake.

    Attributes:
        code: stable, `VF` and three digits.
        title: a few words, for the catalogue page.
        message: template over the facts found.
        rule: what must hold.
        remedy: one action, a template over the same facts.
        level: an error stops the flow; a warning is doubtful; an info says what follows from the flow.
    """

    code: str
    title: str
    message: str
    rule: str
    remedy: str
    level: Level = "error"

    def error(self, location: Location | None = None, **facts: object) -> VortexError:
        """The error for one occurrence. `facts` fill the templates; whatever an author wrote in them is cut and
        made visible here."""
        shown = {name: fact if type(fact) in (int, float) else visible(fact) for name, fact in facts.items()}
        error = VortexError(
            self.code,
            f"{self.message.format(**shown)} (rule: {self.rule.format(**shown)})",
            self.remedy.format(**shown),
            location,
        )
        error.facts = {
            n: str.__getitem__(f, slice(_FACT)) if isinstance(f, str) else f for n, f in facts.items()
        }
        return error


CATALOGUE: dict[str, Mistake] = {}


def _mistake(
    code: str,
    title: str,
    message: str,
    rule: str,
    remedy: str,
    level: Level = "error",
    fault: Fault = "candidate",
) -> Mistake:
    declare(code, title, rule, fault, home="vortex_core")
    CATALOGUE[code] = Mistake(code, title, message, rule, remedy, level)
    return CATALOGUE[code]


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant: near names, else all of them."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name[:_NAME], known, 3) or known)


# --- source: what may be written at all --------------------------------------------------------------------
UNREADABLE = _mistake(
    "VF000",
    "unreadable file",
    "cannot read {path}: {why}",
    "a flow is a readable UTF-8 file",
    "check the path; vortex-search flows lists the library",
    fault="user",
)
SYNTAX = _mistake(
    "VF001",
    "not Python",
    "the source does not parse: {why}",
    "a flow is a Python module",
    "mend the syntax at the line shown",
)
FORBIDDEN = _mistake(
    "VF002",
    "forbidden construct",
    "{what} is not allowed in a flow",
    "a flow only defines a vFlow class; it may import vortex_core and math, and use no files, processes, network, "
    "dunder names or reflection",
    "remove {what}",
)
NO_FLOW = _mistake(
    "VF003",
    "no flow class",
    "found {count} vFlow classes",
    "a flow file defines exactly one subclass of vFlow",
    "define one class that derives from vFlow",
)
MISSING_METHOD = _mistake(
    "VF004",
    "missing method",
    "class {cls} has no {method}",
    "a flow that declares states has create_cache and forward_cache; every flow has forward_indexer",
    "write def {signature}",
)
USER_EXCEPTION = _mistake(
    "VF005",
    "the flow raised",
    "{kind}: {why}",
    "the methods run once on symbolic tensors and must return",
    "{remedy}",
)
TIMEOUT = _mistake(
    "VF006",
    "tracing took too long",
    "no result after {seconds:g} s",
    "tracing ends within its deadline",
    "remove unbounded loops; page and token dimensions are symbolic, so no loop over them is needed",
)
OUT_OF_MEMORY = _mistake(
    "VF007",
    "tracing used too much memory",
    "more than {megabytes} MiB",
    "tracing stays within its memory limit",
    "do not build large Python objects; use vTensor operators",
)
TOO_LARGE = _mistake(
    "VF008",
    "program too large",
    "{count} {what}, at most {limit}",
    "a program stays small enough to compile",
    "write a smaller program",
)
TRACER_DIED = _mistake(
    "VF009",
    "the tracer died",
    "the jailed tracer ended with {why}",
    "tracing returns a program or an error",
    "remove what ends the process",
)
# --- dimensions and types ----------------------------------------------------------------------------------
UNKNOWN_DIM = _mistake(
    "VF010",
    "no such dimension",
    "{op} over {dim!r}, but the tensor is {found}",
    "the dimension exists on the tensor",
    "use one of: {known}",
)
DIM_MISMATCH = _mistake(
    "VF011",
    "one name, two extents",
    "{op}: dimension {dim!r} is {a} and {b} in {found}",
    "a dimension has one extent in an expression",
    "reduce, slice or rename one of them",
)
NOT_BOOL = _mistake(
    "VF012",
    "wrong kind",
    "{op} needs {want}, found {found}",
    "masks are bool, arithmetic is on floats",
    "{remedy}",
)
NOT_DIVISIBLE = _mistake(
    "VF013",
    "extent is not whole",
    "extent {extent} is {value} for {sizes}",
    "every extent is a whole number of at least 1 for the model and page size",
    "choose a divisor of the extent",
)
BAD_EXTENT = _mistake(
    "VF014",
    "bad extent",
    "{found} is not an extent",
    'an extent is a whole number from 1, page.head_dim, page.size, or text such as "D/2"',
    "write e.g. row=4 or dim=page.head_dim",
)
BAD_DIM_NAME = _mistake(
    "VF015",
    "bad name",
    "{found} is not a dimension or state name",
    "names are lower-case identifiers of at most 24 characters",
    "rename it",
)
BAD_ATTRIBUTE = _mistake(
    "VF016", "bad argument", "{op}: {name}={found}", "{name} is {want}", "pass {name} as {want}"
)
DIM_EXISTS = _mistake(
    "VF017",
    "dimension exists",
    "{op}: {dim!r} is already a dimension of {found}",
    "a new dimension has a new name",
    "choose another name than {dim!r}",
)
WRONG_STAGE = _mistake(
    "VF018",
    "operator not available here",
    "{op} in {stage}",
    "{op} is legal in {legal}",
    "move it to {legal}",
)
NOT_A_TENSOR = _mistake(
    "VF019",
    "not a vTensor",
    "{op} got {found}",
    "operands are vTensors or numbers",
    "pass a vTensor or a number",
)
DATA_DEPENDENT = _mistake(
    "VF020",
    "value needed while tracing",
    "{what} of a vTensor",
    "vTensors have no values while tracing, so Python control flow cannot depend on them",
    "use ops.where or comparison operators",
)
BAD_CONST = _mistake(
    "VF021",
    "bad constant",
    "{found} is not a finite number",
    "constants are finite",
    "use a large finite number instead of infinity",
)
CROSS_STAGE = _mistake(
    "VF022",
    "tensor of another method",
    "{op} got a tensor made in {other}",
    "tensors live in the method that made them; states carry values from forward_cache to forward_indexer",
    "store it as a state and read it with cache[...]",
)
UNKNOWN_METHOD = _mistake(
    "VF023",
    "no such method",
    "vTensor has no {name!r}",
    "vTensors have the methods of docs/language.md",
    "use: {near}",
)
UNKNOWN_OP = _mistake(
    "VF024",
    "no such operator",
    "{where} has no {name!r}",
    "operators are those of docs/operators.md",
    "use: {near}",
)
BAD_FLOW_NAME = _mistake(
    "VF025",
    "bad flow name",
    "{found} is not a flow name",
    "a flow's name is letters, digits, _, - and ., begins with a letter and has at most 64 characters",
    'write @register("short_name")',
)
SCRATCH = _mistake(
    "VF026",
    "value too large",
    "{op} yields {found}: up to {count} numbers per page",
    "an intermediate or state is bounded: at most {limit} numbers per page in the largest supported model",
    "reduce a dimension first, or make one smaller: {fits}",
)
BAD_EAGER = _mistake(
    "VF027",
    "bad eager input",
    "{what}",
    "eager mode takes one kv head: k and v (token, dim) of at least one page, q (head, dim)",
    "pass tensors of these shapes",
)
# --- states ------------------------------------------------------------------------------------------------
UNKNOWN_STATE = _mistake(
    "VF030",
    "no such state",
    "state {name!r} is not declared",
    "create_cache declares every state",
    "declare it in create_cache; declared: {known}",
)
STATE_NOT_WRITTEN = _mistake(
    "VF031",
    "state without a writer",
    "state {name!r} is never written",
    "forward_cache returns every state that is not carried; forward_indexer assigns every carried one",
    "{remedy}",
)
STATE_TYPE = _mistake(
    "VF032",
    "state written with other dimensions",
    "state {name!r} is {want} but the value is {found}",
    "the value's dimensions are the declared ones",
    "reduce or declare the dimensions to match",
)
CARRIED_ONLY = _mistake(
    "VF033",
    "assignment to a derived state",
    "cache[{name!r}] = ... for a state that is not carried",
    "only carried states change during decode",
    "declare it with page.state(..., carried=True)",
)
BAD_STATE = _mistake(
    "VF034",
    "bad state declaration",
    "state {name!r}: {why}",
    "a state is page.state(...) with named extents, a dtype of {dtypes}, and no page or token dimension; with "
    'scope="request" it is carried, and may have head="G"',
    "write e.g. page.state(dim=page.head_dim)",
)
STATE_UNUSED = _mistake(
    "VF035",
    "state without a reader",
    "state {name!r} is never read by what selects pages",
    "every state is read in forward_indexer, or it only costs memory",
    "read it or drop it",
    level="warning",
)
DOUBLE_WRITE = _mistake(
    "VF036",
    "state written twice",
    "cache[{name!r}] is assigned twice",
    "a carried state is assigned once per step",
    "combine the two values first",
)
# --- the selection -----------------------------------------------------------------------------------------
NO_SELECTION = _mistake(
    "VF040",
    "no selection returned",
    "forward_indexer returned {found}",
    "forward_indexer returns ops.topk(...), ops.topp(...), ops.threshold(...), a union a | b or ops.everything()",
    "end with return ops.topk(score)",
)
BAD_SCORE = _mistake(
    "VF041",
    "score has the wrong dimensions",
    "{op} got {found}",
    "a score has the dimension page, and head only where each query head selects for itself",
    "{remedy}",
)
SCORE_CONSTANT = _mistake(
    "VF042",
    "score does not depend on the page",
    "every page gets the same score",
    "a score differs between pages",
    "use the page states or ops.position() in the score",
)
BAD_UNION = _mistake(
    "VF043",
    "union of unlike selections",
    "union of {a} and {b}",
    "both selections are per kv head, or both per query head",
    "reduce the head dimension of both scores, or of neither",
)
STATIC_SCORE = _mistake(
    "VF044",
    "score does not depend on the query",
    "the score never reads q",
    "a score usually depends on the query; a static pattern is legal",
    "use q, or ignore this if the pattern is meant to be static",
    level="warning",
)
NO_EFFECT = _mistake(
    "VF045",
    "order-preserving work",
    "{what} of the score cannot change which pages are selected",
    "topk keeps only the order of scores",
    "drop it, or use topp or threshold if the value matters",
    level="warning",
)
REQUEST_LOCAL = _mistake(
    "VF046",
    "request-local flow",
    "{why} changes with every step of one request",
    "pages with request-local values are not shared between requests with a common prefix",
    "nothing to mend; without it, prefix pages are computed once for all requests",
    level="info",
)
BAD_RESIDUAL = _mistake(
    "VF047",
    "bad residual",
    "residual of {why}",
    "a residual is the last word of a flow: mass is (page, head), value a state of D channels in bf16, fp16 or fp32",
    'end with return ops.topk(score).residual(mass, cache["v"])',
)
# --- knobs -------------------------------------------------------------------------------------------------
BAD_BUDGET = _mistake(
    "VF060",
    "bad budget",
    "budget {text!r}: {why}",
    "a budget is a number of tokens or an expression over length, layer, layers, finite at every length",
    'write e.g. "max(256, length / 16)"',
)
BAD_KNOB = _mistake("VF061", "bad knob", "knob {name}={value}", "{rule}", "change {name} so that {rule}")
BAD_KNOBS = _mistake("VF062", "bad knobs", "{why}", "knobs = Knobs(...) with known names", "see Knobs")
BUDGET_BELOW_KEPT = _mistake(
    "VF063",
    "budget below the kept pages",
    "the budget is {pages} pages at length {length}, but {kept} pages are always kept",
    "the budget covers at least the pages kept by rule",
    "raise budget or lower keep_first / keep_last",
)
NO_CHANNELS = _mistake(
    "VF064",
    "no such channels in this model",
    "channels({group!r}) of a model with {count} such channels",
    "nope channels exist only in models with partial rotation (MLA)",
    'use channels("rope") or all channels',
)
NO_ROTARY = _mistake(
    "VF066",
    "rotary frequencies unknown",
    "ops.rotary() of a model whose rotary frequencies are not known here",
    "frequencies are those of the model's configuration, where they are the same at every length",
    "choose channels by q.slice(...) or x.channels(...) instead, or another model",
)
NO_DENSE_LAYER = _mistake(
    "VF067",
    "no dense layer before",
    "ops.dense_mass() with dense_layers={found}: layer {layer} selects, and no layer before it is dense",
    "every layer that selects has a layer of dense_layers before it, whose attention mass it reads",
    "put 0 among them, e.g. dense_layers=(0, 1, 13)",
)
RESIDUAL_REUSED = _mistake(
    "VF068",
    "residual of a reused selection",
    "a residual with {name}={value}",
    "what is left out is weighed by each layer's query at each step, so every layer selects at every step",
    "set {name}=1",
)
NO_RESIDUAL = _mistake(
    "VF069",
    "residual on latent attention",
    "a residual in a model whose attention scores are not q . k / sqrt(D) ({why})",
    "masses are log sums of e^(q . k / sqrt(D)), with D the channels of a key",
    "choose a model of grouped heads, or a flow without a residual",
)
BAD_REFINEMENT = _mistake(
    "VF071",
    "bad refinement",
    "ops.refine(coarse, fine, ...) with {why}",
    "the fine score of a page is computed for candidates alone: from states that no step changes, and from no other "
    "page; a flow has one refinement",
    "{remedy}",
)
BAD_PARAM = _mistake(
    "VF065",
    "bad learned parameters",
    "parameter {name!r}: {why}",
    "values are finite numbers, their axes those of ops.param(...) in the order written, their sizes the model's",
    'give params = {{"w": [[...], ...]}} in the class, or a .npz or .safetensors file beside the flow',
)
# --- programs of other systems -----------------------------------------------------------------------------
DIALECT_IMPORT = _mistake(
    "VF080",
    "unknown foreign name",
    "{module} has no {name}",
    "a vortex_torch program imports what that package has",
    "use: {known}",
)
DIALECT_NO_EQUIVALENT = _mistake("VF081", "no equivalent", "{what} cannot be converted", "{why}", "{remedy}")
DIALECT_SHAPE = _mistake("VF082", "foreign shapes do not fit", "{op}: {found}", "{why}", "{remedy}")
DIALECT_CALL = _mistake(
    "VF083",
    "bad foreign call",
    "{op}: {why}",
    "operators are built with numbers and called with tensors, ctx=ctx, and loc=loc in forward_cache",
    "{remedy}",
)
DIALECT_REUSED = _mistake(
    "VF084",
    "operator instance used twice",
    "this {op} was already called",
    "an instance holds the buffer of one call site",
    "create a second {op}() in __init__",
)
DIALECT_FIELD = _mistake(
    "VF085",
    "bad foreign field",
    "field {name!r}: {why}",
    "create_cache declares a field, forward_cache writes or fills it once, forward_indexer reads it",
    "{remedy}",
)
DIALECT_OUTPUT = _mistake(
    "VF086",
    "no output operator",
    "forward_indexer has {found}",
    "forward_indexer ends with exactly one topK, approxTopK or Union that writes o",
    "end with self.output_func(score, o, ctx=ctx)",
)
DIALECT_KNOB = _mistake(
    "VF087",
    "bad foreign setting",
    "{name}={value!r}: {why}",
    "settings are those of VortexConfig, with or without the vortex_ prefix",
    "correct {name}",
)
DIALECT_TORCH = _mistake(
    "VF088",
    "torch used on a foreign tensor",
    "{what}",
    "the three methods compute with operator instances only",
    "use an operator of vortex_torch.indexer or vortex_torch.cache",
)
DIALECT_CLASS = _mistake(
    "VF089",
    "which foreign flow",
    "the file registers {found}{wanted}",
    "a file has one registered flow, or vortex_module_name names one",
    "set vortex_module_name to one of the registered names",
)
# --- IR files ----------------------------------------------------------------------------------------------
BAD_IR = _mistake("VF090", "malformed IR", "{why}", "IR is what the tracer wrote", "trace the source again")
# --- the jail ----------------------------------------------------------------------------------------------
NO_JAIL = _mistake(
    "VF095",
    "no jail on this machine",
    "untrusted source is not run here: {why}",
    "source is traced only where the jail's door closes",
    "run vortex-search doctor; to trace your own source without a system-call filter, set "
    "VORTEX_JAIL_WITHOUT_FILTER=1",
    fault="infrastructure",
)
MACHINE_LIMIT = _mistake(
    "VF096",
    "the machine's limit is lower than the jail's",
    "this machine gives a process {have} of {what}; the flow needed more, and may use {want}",
    "a flow gets what the jail allows",
    "raise the limit (ulimit, cgroup) and check the flow again",
    fault="infrastructure",
)
NOT_THE_SAME = _mistake(
    "VF097",
    "not the same program twice",
    "two tracings of the source gave {first} and {second}",
    "a source means one program: nothing depends on the order of sets or on addresses",
    "use lists or tuples, sorted(...) over sets, and no text made of objects",
)
OF_THE_MACHINE = (UNREADABLE, NO_JAIL, MACHINE_LIMIT)  # what a program cannot cause
