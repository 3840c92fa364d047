"""How fast a campaign measured, and what its engines waited for: python -m benchmarks.campaign_rates RUN [RUN ...]

Reads the event logs of runs (finished or not). Rates count the programs of the search whose last stage is done, passed
or not, and apart those that went through every stage. An engine is busy while a stage runs on it: from the end of a
stage back over the seconds the stage took.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from typing import Any

from search.log import events as ev
from search.log.run import open_run


def rates(name: str, last_stage: str | None = None) -> dict[str, Any]:
    """Figures of one run.

    Args:
        last_stage: who has a result of it went through everything; by default the plan's last.
    """
    took: dict[str, list[float]] = defaultdict(list)
    on_engine: dict[str, float] = defaultdict(float)  # by worker
    each: dict[str, float] = defaultdict(float)  # engine seconds of a candidate
    compiled: dict[str, list[str]] = defaultdict(list)
    first = last = 0.0
    finished, whole, references = set(), set(), set()
    failed: dict[str, int] = defaultdict(int)
    with open_run(name, readonly=True) as run:
        for record in run.store.read():
            event = record.event
            if isinstance(event, ev.CampaignStarted):
                last_stage = last_stage or event.plan["stages"][-1]
            if isinstance(event, ev.Admitted) and event.reference:
                references.add(event.key)
            if isinstance(event, ev.ReferenceMeasured) and event.purpose == "search":
                first = record.time
            if getattr(event, "purpose", None) != "search":
                continue
            if isinstance(event, ev.StageFinished):
                seconds = float(event.result["seconds"])
                took[event.stage].append(seconds)
                compiled[event.stage] += event.result["info"].get("compiled_here", ())
                if event.worker:
                    on_engine[event.worker] += seconds
                    each[event.key] += seconds
                if event.stage == last_stage and event.result["passed"]:
                    whole.add(event.key)
                if not event.result["passed"]:
                    failed[event.stage] += 1
            if isinstance(event, ev.CandidateFinished):
                finished.add(event.key)
                last = record.time
    span = max(1e-9, last - first)
    found = finished - references
    return {
        "run": name,
        "seconds": round(span, 1),
        "engines": len(on_engine),
        "programs_finished": len(found),
        "programs_through_every_stage": len(found & whole),
        "references": len(references),
        "finished_a_minute": round(len(finished) * 60 / span, 2),
        "engine_seconds_a_candidate": {
            "median": round(statistics.median(each.values()), 2) if each else None,
            "median_of_whole": round(statistics.median([each[k] for k in whole]), 2) if whole else None,
            "most": round(max(each.values()), 2) if each else None,
        },
        "engine_busy": {worker: round(seconds / span, 3) for worker, seconds in sorted(on_engine.items())},
        "stages": {
            stage: {
                "n": len(times), "median_s": round(statistics.median(times), 3), "total_s": round(sum(times), 1),
                "stopped": failed[stage], "kernels_compiled_on_engine": len(compiled[stage]),
                **({"as": sorted(set(compiled[stage]))} if compiled[stage] else {}),
            }
            for stage, times in took.items()
        },
    }  # fmt: skip


def main() -> None:
    """Print JSON, one object a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--last-stage", help="by default the last of the plan")
    given = parser.parse_args()
    for name in given.runs:
        print(json.dumps(rates(name, given.last_stage), indent=1))


if __name__ == "__main__":
    main()
