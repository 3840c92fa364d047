"""Stand-ins for packages that SGLang imports and a run on a CPU does not use. Installed ones come first.

Whatever is taken from a stand-in exists, and raises when it is called.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

NAMES = (
    "torchvision",
    "sgl_kernel",
    "IPython",
    "datasets",
    "av",
    "decord2",
    "soundfile",
    "torchao",
    "torchaudio",
)


def _private(name: str) -> None:
    if name.startswith("__"):
        raise AttributeError(name)


class Missing:
    """A function, constant or instance of a package that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self._name} is a stand-in: the package is not installed")

    def __getattr__(self, name: str) -> Missing:
        _private(name)
        return Missing(f"{self._name}.{name}")


class MissingClass(type):
    """A class of a package that is not there; its attributes exist too."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__name__} is a stand-in: the package is not installed")

    def __getattr__(cls, name: str) -> Missing:
        _private(name)
        return Missing(f"{cls.__name__}.{name}")


class StandIn(types.ModuleType):
    """A module of a package that is not there."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        _private(name)
        return MissingClass(name, (), {}) if name[0].isupper() else Missing(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins, after everything that is installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in NAMES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


sys.meta_path.append(Finder())
