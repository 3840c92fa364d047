"""A campaign from its recording: the programs that proposers wrote, in their order. No one is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.base import Proposal, ProposalRequest, Proposer
from agents.errors import ProposerError
from search.errors import bad_log, not_in_recording, nothing_recorded
from search.log import events as ev
from search.log.run import open_run
from vortex_core.errors import VortexError


@dataclass(frozen=True)
class Recording:
    """What one run asked for and was answered, by number of the proposal.

    Attributes:
        run: its name.
        started: its first event.
        asks: as they were asked.
        answers: programs, and failures; a call that a crash swallowed has neither.
        sources: text of the programs.
    """

    run: str
    started: ev.CampaignStarted
    asks: dict[int, ev.Asked] = field(default_factory=dict)
    answers: dict[int, ev.Proposed | ev.ProposalFailed] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)


def read_recording(run: str) -> Recording:
    """The recording of a run.

    Raises:
        VortexError: `VS001` for a run that does not exist, `VS060` for one that never began.
    """
    with open_run(run, readonly=True) as opened:
        recording: Recording | None = None
        for record in opened.store.read():
            match record.event:
                case ev.CampaignStarted() as started:
                    recording = Recording(run, started)
                case ev.Asked() as ask if recording is not None:
                    recording.asks[ask.proposal] = ask
                case ev.Proposed() as answer if recording is not None:
                    recording.answers[answer.proposal] = answer
                    recording.sources[answer.proposal] = opened.files.get(answer.source, ".py")
                case ev.ProposalFailed() as failure if recording is not None:
                    recording.answers[failure.proposal] = failure
    if recording is None or not recording.asks:
        raise nothing_recorded(run)
    return recording


class ReplayProposer(Proposer):
    """Answers each request with what the recording answered to the proposal of that number. It costs nothing."""

    repairs = False
    needs_language = False

    def __init__(self, recording: Recording) -> None:
        self.name = f"replay:{recording.run}"
        self.recording = recording

    async def propose(self, request: ProposalRequest) -> Proposal:
        """The recorded program.

        Raises:
            ProposerError: the recorded failure, or `VS061` where the recording has no answer.
        """
        answer = self.recording.answers.get(request.number)
        if answer is None:
            raise not_in_recording(self.recording.run, request.number)
        if isinstance(answer, ev.ProposalFailed):
            error = _recorded_error(answer.error, self.recording.run)
            raise ProposerError(
                error.code, error.message, error.remedy, fault="infrastructure", retryable=True
            )
        return Proposal(self.recording.sources[request.number], answer.idea, answer.proposer)


def _recorded_error(data: object, run: str) -> VortexError:
    """A failure as it was recorded.

    Raises:
        VortexError: `VS005` for what is none.
    """
    try:
        return VortexError.from_json(data)  # type: ignore[arg-type]  # whatever it is
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise bad_log(f"of {run}", f"a failure that is no error ({type(error).__name__})") from error
