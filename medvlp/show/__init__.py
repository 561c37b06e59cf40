"""Figures, explanations, counterfactual tests, the failure gallery, maps and widgets.

The public names stand in `__init__.pyi`. Each is imported when it is first used, with what it needs.
"""

from typing import Any

import lazy_loader

_import_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name not in __all__:
        from medvlp.data.errors import unknown_name

        raise AttributeError(unknown_name("name", name, __all__, "medvlp.show"))
    return _import_public(name)
