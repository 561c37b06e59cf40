"""medvlp: knowledge-guided prompt tuning of CLIP for medical images, to learn from and to build on.

For teaching and research. Not a medical device.

The public names stand in `__init__.pyi`. Each is imported when it is first used: `import medvlp` stays quick.
"""

from typing import Any

import lazy_loader

__version__ = "0.2.0"
_import_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in __all__:
        from medvlp.data.errors import unknown_name

        raise AttributeError(unknown_name("name", name, __all__, "medvlp"))
    return _import_public(name)
