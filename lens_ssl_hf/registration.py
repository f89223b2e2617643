"""Registers the models with the Auto classes of transformers, and the pipeline, as soon as a program has those."""

import importlib
import importlib.abc
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# What a program loads -> the module here that registers with it.
_REGISTERED = {"transformers.models.auto.configuration_auto": "models", "transformers.pipelines": "inference.pipeline"}
_PACKAGE = __name__.partition(".")[0]


def register_with_transformers() -> None:
    """
    Import what registers every model, and the pipeline: now where transformers has already loaded its Auto classes or
    pipelines, else when it does. Importing them takes torch and seconds, which a command line's `--help`, and programs
    that only read cutouts, need not wait for.
    """
    finder = _WhenLoaded()
    sys.meta_path.insert(0, finder)
    finder.register()


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and registers what is ours after the import that brought its counterpart."""

    def __init__(self) -> None:
        self.missing = dict(_REGISTERED)
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
        if self.depth == 0:
            self.register()

    def register(self) -> None:
        """Import what registers with the modules that are there by now."""
        for name in [name for name in self.missing if name in sys.modules]:
            if module := self.missing.pop(name, None):  # an import within this one may have done it
                importlib.import_module(f"{_PACKAGE}.{module}")
        if not self.missing and self in sys.meta_path:
            sys.meta_path.remove(self)
