"""Registers the models with the Auto classes of transformers, as soon as a program has those."""

import importlib
import importlib.abc
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_AUTO_CLASSES = "transformers.models.auto.configuration_auto"
_PACKAGE = __name__.partition(".")[0]


def register_with_auto_classes() -> None:
    """
    Import `lens_ssl_hf.models`, which registers every model: now where transformers has already loaded its Auto
    classes, else when it does. Importing them takes torch and seconds, which a command line's `--help`, and programs
    that only read cutouts, need not wait for.
    """
    if _AUTO_CLASSES in sys.modules:
        importlib.import_module(f"{_PACKAGE}.models")
    else:
        sys.meta_path.insert(0, _WhenLoaded())


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and registers the models after the import that brought the Auto classes."""

    def __init__(self) -> None:
        self.depth = 0  # of imports within imports: the models need whole modules, ours and those of transformers

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in ("transformers", _PACKAGE):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.depth += 1
        try:
            execute(module)
        finally:
            self.depth -= 1
        if self.depth == 0 and _AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module(f"{_PACKAGE}.models")
