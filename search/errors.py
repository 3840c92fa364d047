"""Errors of the search layer. Codes `VS...`; each builder states one fact and one remedy."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable

from vortex_core.errors import ErrorCode, Fault, VortexError, declare, place_of
from vortex_core.registry import unknown_name


def _declare(code: str, title: str, rule: str, fault: Fault, *, retryable: bool = False) -> ErrorCode:
    return declare(code, title, rule, fault, retryable=retryable, home="search")


UNKNOWN_NAME = _declare("VS001", "unknown name", "campaigns, proposers, runs and other names exist", "user")
_declare("VS002", "bad configuration", "a configuration file validates", "user")
_declare("VS003", "run in use", "one process writes a run at a time", "infrastructure", retryable=True)
_declare("VS004", "other settings", "a run is resumed with the settings it was started with", "user")
_declare(
    "VS005",
    "unreadable event log",
    "an event log was written by a version that this one reads",
    "infrastructure",
)
_declare("VS006", "no such candidate", "a candidate is named by number, key or name", "user")
_declare("VS007", "no such rank", "a rank is one of the leaderboard's", "user")
_declare(
    "VS008", "worker lost", "an evaluation worker lives until it is stopped", "infrastructure", retryable=True
)
_declare("VS009", "proposer down", "a proposer answers now and then", "infrastructure", retryable=True)
_declare("VS010", "bad value", "values on the command line are in their ranges", "user")
_declare("VS011", "folder in use", "export writes into an empty folder", "user")
_declare(
    "VS012",
    "stage killed at its deadline",
    "a stage ends within its deadline on one of two fresh workers",
    "candidate",
)
_declare("VS013", "not an export", "the folder was written by export", "user")
_declare(
    "VS014", "candidate that kills workers", "a worker survives the candidate at least once", "candidate"
)
_declare(
    "VS015",
    "conversion that changed the program",
    "converted source traces to the program it came from",
    "infrastructure",
)
_declare("VS016", "cluster that does not start", "Ray starts, or is joined", "infrastructure", retryable=True)
_declare(
    "VS017",
    "run that cannot be written",
    "the run's disk has room and its log is not locked",
    "infrastructure",
    retryable=True,
)
_declare(
    "VS018",
    "the same failure for every candidate",
    "an infrastructure error does not return for candidate after candidate",
    "infrastructure",
)
_declare(
    "VS019",
    "unexpected exception in a worker",
    "workers raise typed errors",
    "infrastructure",
    retryable=True,
)
_declare("VS040", "campaign without its GPUs", "GPUs that are asked for are there", "user")
_declare("VS041", "too few GPUs", "there are as many GPUs as are asked for", "user")
_declare("VS042", "too little memory", "the weights fit the devices that hold them", "user")
_declare("VS043", "other device", "a run is measured on one kind of device", "user")

_declare(
    "VS046",
    "locks that exclude nobody",
    "the file system of a run lets one process alone lock a file",
    "user",
)
_declare(
    "VS047", "run taken over", "a writer is the only one until it lets go", "infrastructure", retryable=True
)
_declare(
    "VS048",
    "damaged run",
    "a run's log and the texts that it names are as they were written",
    "infrastructure",
)
_declare("VS049", "run being read", "nobody reads a run while it is packed", "infrastructure", retryable=True)
_declare("VS050", "other weights", "a run is measured on one set of weights", "user")

_declare(
    "VS030", "too many jobs", "a tools server runs so many jobs at once as it was started with", "budget"
)
_declare("VS031", "no such job", "a job is polled by the name its start answered with", "user")
_declare("VS032", "package not installed", "optional parts need their extra installed", "user")
_declare("VS052", "run is over", "programs are handed to a run that still searches", "user")
_declare("VS053", "it did not hold", "what is shelved beat the library where it was not fitted", "user")
_declare("VS054", "file exists", "a file that is written is new", "user")
_declare("VS060", "nothing to replay", "a run that is replayed asked for something", "user")
_declare(
    "VS061",
    "not in the recording",
    "a recording has an answer to every ask",
    "infrastructure",
    retryable=True,
)
_declare("VS044", "no winner", "the winner of a run is asked for where its finals chose one", "user")
_declare(
    "VS045", "cannot be measured again", "a result is measured again on the kind of device it is of", "user"
)

_declare("VS090", "bad command line", "commands, options and arguments are those of --help", "user")
_declare(
    "VS091",
    "unexpected exception in a command",
    "commands raise typed errors",
    "infrastructure",
)
_declare("VS092", "file that cannot be used", "files and folders named can be read and written", "user")
_declare("VS093", "out of memory", "what a command is asked for fits this process's memory", "user")


_RAY_LOGS = f"{tempfile.gettempdir()}/vortex-search-{os.getuid()}/ray/session_latest/logs"
"""Where Ray keeps what workers wrote, on a machine whose cluster is a campaign's own."""


def unknown_run(name: str, known: Iterable[str]) -> VortexError:
    """`VS001`: a run that does not exist, with the nearest ones."""
    return unknown_name("VS001", "run", name, sorted(known))


def run_locked(run: str, holder: str) -> VortexError:
    """`VS003`: another process writes this run."""
    return VortexError(
        "VS003",
        f"run {run!r} is being written by {holder}",
        "wait for it, stop it, or choose another --run",
    )


def locks_do_nothing(path: str, filesystem: str) -> VortexError:
    """`VS046`: two writers could write one run, so none may."""
    return VortexError(
        "VS046",
        f"{path}: its file system ({filesystem}) gives one lock to two at a time",
        "put the run elsewhere (VORTEX_RUNS=/a/local/folder), or mount this one with working locks",
    )


def run_taken_over(run: str) -> VortexError:
    """`VS047`: this writer gave no sign of life for so long that another one went on."""
    return VortexError(
        "VS047",
        f"another process has taken over run {run!r}; nothing more is written by this one",
        "let that one go on; rerun here when it has ended",
    )


def damaged_run(run: str, problems: int) -> VortexError:
    """`VS048`: `fsck` found what no campaign writes."""
    return VortexError(
        "VS048",
        f"run {run!r} has {problems} problem{'s' * (problems != 1)}",
        "each is listed above with what to do",
    )


def run_being_read(run: str) -> VortexError:
    """`VS049`: the log cannot be exchanged under a reader."""
    return VortexError("VS049", f"somebody reads run {run!r}", "close what reads it, and pack it again")


def other_weights(run: str, before: str, now: str) -> VortexError:
    """`VS050`: another model under the same name."""
    return VortexError(
        "VS050",
        f"run {run!r} was measured on weights {before}, and these are {now}",
        "restore the weights, or name a new --run",
    )


def other_configuration(run: str, differences: Iterable[str]) -> VortexError:
    """`VS004`: resuming with settings other than the recorded ones would mix incomparable results."""
    return VortexError(
        "VS004",
        f"run {run!r} was started with other settings: {'; '.join(differences)}",
        "repeat the original command to resume it, or name a new --run",
    )


def bad_log(path: str, why: str) -> VortexError:
    """`VS005`: an event log that this version cannot read."""
    if "disk" in why:  # SQLite's words for a full one, and for a limit on the size of files
        return VortexError(
            "VS005", f"event log {path}: {why}", "mend its disk, or this machine's limits on files"
        )
    return VortexError("VS005", f"event log {path}: {why}", "read it with the version that wrote it")


def no_such_candidate(run: str, wanted: str, known: Iterable[str]) -> VortexError:
    """`VS006`: no candidate of that number, key or name."""
    shown = list(known)
    near = difflib.get_close_matches(wanted, shown, n=3, cutoff=0.4)
    return VortexError(
        "VS006",
        f"run {run!r} has no candidate {wanted!r}",
        f"did you mean {' or '.join(near)}?" if near else f"list them: vortex-search leaderboard {run}",
    )


def no_such_rank(run: str, rank: int, ranked: int) -> VortexError:
    """`VS007`: fewer ranked programs than asked for."""
    return VortexError(
        "VS007",
        f"run {run!r} has {ranked} ranked programs of its own, none at rank {rank}",
        f"choose a rank from 1 to {ranked}" if ranked else "let the campaign finish at least one candidate",
    )


def cannot_measure_again(devices: str) -> VortexError:
    """`VS045`: results of a GPU cannot be checked on a CPU."""
    return VortexError(
        "VS045",
        f"this was measured on {devices}, and this machine has no GPU to measure it again",
        "run verify.py where there is one, or verify.py --quick, which checks what needs none",
    )


def no_winner(run: str, why: str) -> VortexError:
    """`VS044`: a run whose finals chose nothing, or are not over."""
    return VortexError(
        "VS044",
        f"run {run!r} has no winner: {why}",
        "take a program by its rank: --rank 1; its card says what is open",
    )


def not_held(why: str) -> VortexError:
    """`VS053`: a winner that showed too little to be shelved."""
    return VortexError(
        "VS053", f"the winner did not hold: {why}", "export it: --winner; its card says what is open"
    )


def file_exists(path: str) -> VortexError:
    """`VS054`: something of that name is there."""
    return VortexError("VS054", f"{path} exists", "choose another --name")


def run_is_over(run: str) -> VortexError:
    """`VS052`: nobody would take what is handed in."""
    return VortexError(
        "VS052", f"the campaign of run {run!r} is over", "start another with the file among its references"
    )


def engine_lost(why: str, log: str = "") -> VortexError:
    """`VS008`: an evaluation worker could not be started or kept alive. `log`: the file it wrote, `host:path`."""
    log = log or _RAY_LOGS
    return VortexError(
        "VS008",
        f"evaluation worker lost: {why}",
        f"see its output in {log}; rerun to resume the campaign",
        log=log,
    )


def no_cluster(why: str, remedy: str = "") -> VortexError:
    """`VS016`: Ray neither starts nor can be joined."""
    return VortexError(
        "VS016",
        f"Ray did not start: {why}",
        remedy or "check --address, or free processes and memory; then rerun",
    )


def not_written(path: str, why: str) -> VortexError:
    """`VS017`: nothing more can be recorded, so nothing more may happen."""
    return VortexError(
        "VS017",
        f"{path} cannot be written: {why}",
        "free space on its disk, or stop what holds the file; rerun the same command to resume",
    )


def repeated_failure(labels: Iterable[str], error: VortexError) -> VortexError:
    """`VS018`: one infrastructure error ended candidate after candidate; going on would only burn the budget."""
    where = f"\n  raised at {error.place}" if error.place else ""
    log = f"\n  log: {error.log}" if error.log else ""
    return VortexError(
        "VS018",
        f"{', '.join(labels)} ended with the same failure, which is not theirs:\n{error}{where}{log}",
        "mend what it names, or report it with the log; rerun the same command to resume: these are tried again",
        place=error.place,
        log=error.log,
    )


def crashed(error: Exception) -> VortexError:
    """`VS019`: an exception that nobody typed: a defect of ours, or a library's way to fail."""
    said = str(error).strip().splitlines()
    return VortexError(
        "VS019",
        f"{type(error).__name__}: {said[0][:300] if said else 'no message'}",
        "report it with the log of the worker",
        place=place_of(error.__traceback__),
    )


def bad_command(why: str) -> VortexError:
    """`VS090`: a command line that is none."""
    return VortexError("VS090", why, "see `vortex-search --help`, or --help after the command")


def broke(error: Exception, log: str) -> VortexError:
    """`VS091`: an exception that nobody typed ended a command; its traceback is in `log`."""
    said = str(error).strip().splitlines()
    return VortexError(
        "VS091",
        f"{type(error).__name__}: {said[0][:300] if said else 'no message'}",
        f"report it with {log}" if log else "report it with the command",
        place=place_of(error.__traceback__),
        log=log,
    )


def unusable_file(path: str, why: str) -> VortexError:
    """`VS092`: the system refuses a file or folder."""
    return VortexError("VS092", f"{path}: {why}", "name another one, or mend its permissions or its disk")


def out_of_memory(what: str) -> VortexError:
    """`VS093`: this process may not have as much memory as was asked for."""
    return VortexError("VS093", f"out of memory: {what}", "ask for less: smaller batches, contexts or models")


def proposer_down(failures: int, last: str) -> VortexError:
    """`VS009`: the proposer keeps failing; the campaign pauses rather than burn its budget."""
    return VortexError(
        "VS009",
        f"the proposer failed {failures} times in a row, last: {last}",
        "mend the endpoint or key and rerun the same command to resume",
    )


def bad_value(option: str, value: object, rule: str) -> VortexError:
    """`VS010`: a command-line value outside its range."""
    return VortexError("VS010", f"{option} {value!r}: {rule}", f"give {option} a value that is {rule}")


def folder_in_use(path: str, why: str = "") -> VortexError:
    """`VS011`: export would overwrite something; `why` even --force does not."""
    remedy = "choose another --out" + ("" if why else " or pass --force")
    return VortexError("VS011", f"{path} exists and is not empty" + (f": {why}" if why else ""), remedy)


def deadline_passed(stage: str, seconds: float) -> VortexError:
    """`VS012`: a stage ran past its deadline twice, each time on a fresh worker."""
    return VortexError(
        "VS012",
        f"stage {stage} did not finish within {seconds:g} s",
        "make the program cheaper: fewer states, fewer cross-page operators, larger pages",
    )


def not_an_export(path: str, missing: str) -> VortexError:
    """`VS013`: a directory that `export` did not write, or an incomplete one."""
    return VortexError("VS013", f"{path} is not an exported flow: {missing} is missing", "export it again")


def no_gpu(whose: str) -> VortexError:
    """`VS040`: a campaign asks for GPUs where there are none."""
    return VortexError(
        "VS040",
        f"a GPU is asked for, and {whose} has none that CUDA shows",
        "see `vortex-search doctor`; --device cpu runs a campaign made for it",
    )


def too_few_gpus(what: str, remedy: str) -> VortexError:
    """`VS041`: fewer GPUs than asked for."""
    return VortexError("VS041", what, remedy)


def no_memory(model: str, needed: str, found: str, remedy: str) -> VortexError:
    """`VS042`: the weights exceed the memory of the device they would go to."""
    return VortexError("VS042", f"the weights of {model} need {needed}, {found}", remedy)


def other_device(run: str, before: str, now: str) -> VortexError:
    """`VS043`: numbers of two kinds of device do not belong in one table."""
    return VortexError(
        "VS043",
        f"run {run!r} was measured on {before}, and this is {now}",
        "resume it on the same kind of device, or name a new --run",
    )


def worker_killer(stage: str, times: int, last: str) -> VortexError:
    """`VS014`: workers start well without this candidate and fail with it, every time."""
    return VortexError(
        "VS014",
        f"the worker died {times} times in stage {stage}, each time a new one; last: {last}",
        "make the program smaller: it may exhaust memory",
    )


def too_many_jobs(most: int, running: list[str]) -> VortexError:
    """As many jobs run as the server allows."""
    return VortexError(
        "VS030",
        f"{most} jobs run already: {', '.join(running)}",
        "poll them with wait_seconds until one ends, or cancel one",
    )


def no_such_job(name: str, known: list[str]) -> VortexError:
    """A poll of a job that was never started."""
    return VortexError("VS031", f"no job {name!r}", f"jobs: {', '.join(known) or 'none yet'}")


def not_installed(package: str, command: str) -> VortexError:
    """An optional package is missing."""
    return VortexError("VS032", f"the package {package} is not installed", command)


def nothing_recorded(run: str) -> VortexError:
    """`VS060`: a run without proposals."""
    return VortexError("VS060", f"run {run!r} asked for nothing", "name a run that proposed something")


def not_in_recording(run: str, number: int) -> VortexError:
    """`VS061`: a call that a crash swallowed has no answer to be replayed."""
    return VortexError(
        "VS061", f"run {run!r} has no answer to proposal {number}", "it was stopped while it asked"
    )
