"""What a campaign begins at and compares its finds with: library flows, or a user's own, and which of them answer.

Those that a campaign names one by one all answer. Of those that a grid names, such as the whole library at many
budgets, the screen chooses as many as it is told to (`Screen.references`), as it chooses among programs.
"""

from __future__ import annotations

from collections.abc import Callable

from search.campaign.ladder import Ladder
from search.campaign.pipeline import LibraryLoader, Pipeline
from search.config import CampaignConfig
from search.executors.base import Executor
from search.log.state import CampaignState, Candidate
from search.together import together

Late = Callable[[], bool]


class References:
    """The references of a campaign.

    Args:
        ladder: of a screened campaign.
    """

    def __init__(
        self,
        config: CampaignConfig,
        state: CampaignState,
        executor: Executor,
        pipeline: Pipeline,
        ladder: Ladder | None,
    ) -> None:
        self.config, self.state, self.executor = config, state, executor
        self.pipeline, self.ladder = pipeline, ladder
        self._named: set[str] = set()  # they answer, whatever the screen says of others
        self._answering: set[str] = set()  # of the others those that were chosen and are under way
        self._ranked = False  # whether the screen has said which of the others are the best

    @property
    def _most(self) -> int:
        """How many of those that a grid names answer; 0: all."""
        return 0 if self.config.screen is None else self.config.screen.references

    def admit(self, library: LibraryLoader) -> list[Candidate]:
        """All references, as candidates."""
        keys: dict[str, bool] = {}  # whether it is named, once at least, and not by a grid to choose from
        for reference in self.config.references:
            for name, knobs in reference.each():
                flow, source = library(name, self.config.knobs | knobs)
                if flow.key not in self.state.candidates:
                    self.pipeline.admit(flow, source, None)
                keys[flow.key] = keys.get(flow.key, False) or not (reference.grid and self._most)
        self._named = {key for key, named in keys.items() if named}
        return [self.state.candidates[key] for key in keys]

    async def screened(self, references: list[Candidate], late: Late) -> None:
        """Screen those that are named, at which a search begins."""
        await self.executor.record(self.pipeline.seed("search"))
        await self._screen([c for c in references if c.key in self._named], late)

    async def _screen(self, references: list[Candidate], late: Late) -> None:
        waiting = [c for c in references if not c.is_dense and c.status("screen") == "waiting"]
        await together(self.pipeline.evaluate(c, "screen", late=late) for c in waiting)

    async def answer(self, references: list[Candidate], late_to_screen: Late, late: Late) -> None:
        """Have those that are named answer while the others are screened, and then the best of these."""
        named = [c for c in references if c.key in self._named and c.status() == "waiting"]
        others = [c for c in references if c.key not in self._named]
        answers = (self.pipeline.evaluate(c, "search", late=late) for c in named)
        await together([*answers, self._screen(others, late_to_screen)])
        if self.config.screen is None or self.ladder is None or not others:
            return
        for candidate in others:
            if candidate.status() == "waiting":
                self.ladder.may_answer(candidate)
        self._ranked = True
        lanes = self.executor.engines * (1 + self.config.screen.ahead)
        await together(self._answer_the_best(self.ladder, late) for _ in range(lanes))

    async def _answer_the_best(self, ladder: Ladder, late: Late) -> None:
        """One after another, whoever promises most, until so many have answered."""
        while self.left and not late() and (key := ladder.library.next(anyone=True)) is not None:
            ladder.library.went(key)
            self._answering.add(key)
            try:
                await self.pipeline.evaluate(self.state.candidates[key], "search", late=late)
            finally:
                self._answering.discard(key)

    @property
    def under_way(self) -> int:
        """How many of those that were chosen have set out and not answered."""
        return len(self._answering)

    @property
    def left(self) -> int:
        """How many are to answer and have not begun to, as far as it is known which."""
        named, others, answered = 0, 0, 0
        for c in self.state.candidates.values():
            if not c.reference or c.status("screen") != "passed" or c.key in self._answering:
                continue
            waiting = c.status("search") == "waiting"
            if c.key in self._named:
                named += waiting
            elif waiting:
                others += 1
            else:  # who never came to an engine, for example as the target refuses it, takes nobody's place
                answered += c.failure is None or self.executor.needs_engine(c.failure.stage)
        left = min(others, max(0, self._most - answered - len(self._answering)))
        return named + (left if self._ranked else 0)
