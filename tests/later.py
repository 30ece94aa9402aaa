"""Modules that are imported when something of them is first used: collecting the tests loads no torch."""

import importlib
from typing import Any


class Later:
    """A module by its name; its public attributes are the module's (pytest looks for private ones as it collects)."""

    def __init__(self, name: str) -> None:
        self._module = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._module), attribute)
