"""Settings of the plug-in. They travel in environment variables, which every server process inherits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortex_core.ir.crossover import Crossover
from vortex_core.serving.errors import bad_setting

FLOW = "VORTEX_SERVING_FLOW"
PREFILL = "VORTEX_SERVING_PREFILL"
BACKEND = "VORTEX_SERVING_BACKEND"
STATUS = "VORTEX_SERVING_STATUS"
CROSSOVER = "VORTEX_SERVING_CROSSOVER"
BACKENDS = ("triton", "torch")


@dataclass(frozen=True)
class Settings:
    """What a server process needs to know.

    Attributes:
        flow: exported directory, bundle file or library flow.
        prefill: attention backend of the engine that prefills; None: the engine's own choice.
        backend: `triton` or `torch`; None: Triton on a GPU, torch elsewhere.
        crossover: below how many tokens sequences attend to everything, `BATCHxTOKENS,...`, or `off`; None: what was
            measured on this machine with its versions (`vortex-search tune --crossover`), and where nothing was, never.
        status: file in which rank 0 keeps what runs and how much it attends, as JSON; None: the log only.
    """

    flow: str
    prefill: str | None = None
    backend: str | None = None
    status: str | None = None
    crossover: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings | None:
        """The settings, or None where no flow is named.

        Raises:
            VortexError: `VE031` for a value outside its range.
        """
        flow = environment.get(FLOW)
        if not flow:
            return None
        backend = environment.get(BACKEND) or None
        if backend is not None and backend not in BACKENDS:
            raise bad_setting(BACKEND, backend, f"it is one of {', '.join(BACKENDS)}")
        crossover = environment.get(CROSSOVER) or None
        if crossover is not None:
            try:
                Crossover.parse(crossover)
            except ValueError as error:
                rule = "it is off, or BATCHxTOKENS by rising batches, e.g. 1x20480,4x8192"
                raise bad_setting(CROSSOVER, crossover, rule) from error
        prefill, status = environment.get(PREFILL) or None, environment.get(STATUS) or None
        return cls(flow, prefill, backend, status, crossover)

    def to_environment(self) -> dict[str, str]:
        """The variables to set, inverse of `from_environment`."""
        pairs = {
            FLOW: self.flow, PREFILL: self.prefill, BACKEND: self.backend, STATUS: self.status,
            CROSSOVER: self.crossover,
        }  # fmt: skip
        return {name: value for name, value in pairs.items() if value is not None}
