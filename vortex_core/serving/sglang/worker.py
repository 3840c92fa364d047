"""An SGLang engine that obeys JSON lines: one request on stdin, one answer on the descriptor it was given.

SGLang kills its own process tree when it fails, so nothing else may live in its process. Started by
`serving.client`; runs in SGLang's environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Worker:
    """The engine behind the protocol."""

    def __init__(self, options: dict[str, Any]) -> None:
        import sglang

        if options.pop("forced_starts", False):
            from vortex_core.serving.sglang.forced import OPTIONS

            options |= OPTIONS
        began = time.perf_counter()
        self.engine = sglang.Engine(**options)
        self.facts = {"sglang": sglang.__version__, "start_s": round(time.perf_counter() - began, 2)}

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Greedy answers of exactly `new` tokens to `ids`, `starts` included; seconds of the whole batch."""
        greedy = {"temperature": 0, "max_new_tokens": request["new"], "ignore_eos": True}
        sampling: Any = greedy
        more = {}
        if request.get("starts"):
            from vortex_core.serving.sglang.forced import START, ForcedStart

            sampling = [greedy | {"custom_params": {START: start}} for start in request["starts"]]
            more["custom_logit_processor"] = ForcedStart.to_str()
        began = time.perf_counter()
        found = self.engine.generate(input_ids=request["ids"], sampling_params=sampling, **more)
        seconds = time.perf_counter() - began
        cached = [int(r["meta_info"].get("cached_tokens", 0)) for r in found]
        return {"seconds": seconds, "tokens": [r["output_ids"] for r in found], "cached": cached}

    def stream(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same answers token by token; seconds between consecutive tokens of a sequence, oldest first.

        Tokens that arrive together share the time since the one before.
        """
        began = time.perf_counter()
        last: dict[int, tuple[float, int]] = {}
        ends: dict[int, dict[str, Any]] = {}
        gaps: list[float] = []
        for found in self.engine.generate(
            input_ids=request["ids"],
            sampling_params={"temperature": 0, "max_new_tokens": request["new"], "ignore_eos": True},
            stream=True,
        ):
            now, at = time.perf_counter(), found["index"]
            count = int(found["meta_info"]["completion_tokens"])
            if at in last and count > last[at][1]:
                then, before = last[at]
                gaps += [(now - then) / (count - before)] * (count - before)
            last[at], ends[at] = (now, count), found
        answers = [ends[at] for at in range(len(request["ids"]))]
        return {
            "seconds": time.perf_counter() - began,
            "tokens": [answer["output_ids"] for answer in answers],
            "cached": [int(answer["meta_info"].get("cached_tokens", 0)) for answer in answers],
            "gaps": gaps,
        }

    def profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generate once more and leave the trace of every rank's GPU kernels in `folder`."""
        self.engine.start_profile(
            output_dir=request["folder"], activities=["GPU"], with_stack=False, record_shapes=False
        )
        try:
            return self.generate(request)
        finally:
            self.engine.stop_profile()

    def flush(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forget all cached prefixes."""
        self.engine.flush_cache()
        return {}


def main() -> None:
    """Serve requests until stdin ends."""
    with os.fdopen(int(sys.argv[1]), "w") as answers:

        def answer(value: dict[str, Any]) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        worker = Worker(json.loads(sys.stdin.readline()))
        answer(worker.facts)
        for line in sys.stdin:
            request = json.loads(line)
            answer(getattr(worker, request["do"])(request))
        worker.engine.shutdown()


if __name__ == "__main__":  # SGLang's processes import this module again
    main()
