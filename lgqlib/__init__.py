"""Learnable Geometric Quantization: the model, the training loop, and what shows a codebook.

    from lgqlib import LGQ, Tokenizer, preset

Names are imported when they are first used: `import lgqlib` alone needs no torch.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

_FACE = {
    "LGQ": "quantizers.lgq",
    "Tokenizer": "tokenizer",
    "Config": "config",
    "preset": "presets",
    "train": "train",
    "evaluate": "evaluate",
    "Run": "run",
    "explore": "explorers.codebook",
}
"""Public name: the module that defines it."""
__all__ = [*_FACE]


class _Package(types.ModuleType):
    def __getattr__(self, name: str):
        if name not in _FACE:
            raise AttributeError(f"module 'lgqlib' has no attribute {name!r}")
        return getattr(importlib.import_module(f"lgqlib.{_FACE[name]}"), name)

    def __setattr__(self, name: str, value) -> None:
        # Python names a submodule in its package once it is imported: the function has the name.
        if not (name in _FACE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *_FACE})


sys.modules[__name__].__class__ = _Package
