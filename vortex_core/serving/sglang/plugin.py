"""Entry point `sglang.srt.plugins`: SGLang calls `register` in every process, before it parses arguments.

SGLang only logs what a plug-in raises and goes on. So a failure here is kept, and raised by the backend when
the server asks for it: `--attention-backend vortex` either runs the flow or does not start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.serving.errors import bad_bundle
from vortex_core.serving.settings import FLOW, Settings
from vortex_core.serving.sglang import NAME, dense_graphs

logger = logging.getLogger(__name__)
_CELL_SIZE = "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size"


def register() -> None:
    """Make the backend known. Does nothing else in servers that do not ask for it."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import (
        ATTENTION_BACKEND_CHOICES,
        add_attention_backend_choices,
        add_chunked_prefix_cache_attention_backend,
    )

    if NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([NAME])
    add_chunked_prefix_cache_attention_backend(
        NAME
    )  # MLA prefill is the inner backend's, whatever we are called
    register_attention_backend(NAME)(_creator())


def _creator() -> Callable[[Any], Any]:
    """What builds the backend, or raises why it cannot be built."""
    try:
        settings = Settings.from_environment(os.environ)
        if settings is None:
            raise bad_bundle("", f"{FLOW} is not set")
        from vortex_core.serving.bundle import load_flow

        bundle = load_flow(settings.flow)
        _account_for_states(settings, bundle)
        if settings.crossover != "off":
            dense_graphs.register()
    except Exception as error:  # noqa: BLE001  # whatever it is: SGLang would swallow it
        failure = error

        def refuse(runner: Any) -> Any:
            raise failure

        if isinstance(error, VortexError) and not os.environ.get(FLOW):
            return refuse  # installed but not asked for: nothing to say
        logger.error("vortex: %s", error)
        return refuse

    def create(runner: Any) -> Any:
        from vortex_core.serving.sglang import contract
        from vortex_core.serving.sglang.build import build

        contract.check()
        _check_hook()
        return build(runner, settings, bundle)

    return create


def _account_for_states(settings: Settings, bundle: Any) -> None:
    """Let SGLang count a token's page states as part of its KV when it sizes the pool."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def with_states(size: int, configurator: Any, kvc: Any, num_layers: int) -> int:
        from vortex_core.serving.sglang.build import flow_backend, state_bytes_per_token
        from vortex_core.serving.sglang.compat import setting

        if setting(kvc.server_args, "attention_backend") != NAME:
            return size
        return size + state_bytes_per_token(bundle, kvc.model_config, flow_backend(settings, kvc.device))

    HookRegistry.register(_CELL_SIZE, with_states, HookType.AFTER)


def _check_hook() -> None:
    """SGLang only logs hooks that it could not apply."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if _CELL_SIZE not in HookRegistry._patched:
        import sglang

        from vortex_core.serving.errors import interface_moved
        from vortex_core.serving.sglang import SUPPORTED

        raise interface_moved(sglang.__version__, [f"{_CELL_SIZE} takes no hook"], SUPPORTED)
