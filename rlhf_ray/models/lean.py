"""transformers without scikit-learn and SciPy, wherever these are installed.

transformers imports them for assisted decoding and for object detection, which nothing here does; with pandas behind
them that is a fifth of the time in which an actor's process starts. Afterwards they can be imported as ever.
"""

import importlib
import sys

_HIDDEN = ("sklearn", "scipy")
_IMPORTERS = ("transformers.generation.candidate_generator", "transformers.loss.loss_utils")


def import_lean_transformers() -> None:
    """Import the modules of transformers that would load them; call before anything else imports these."""
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # not to be found
    try:
        for importer in _IMPORTERS:
            importlib.import_module(importer)
    finally:
        for name in hidden:
            del sys.modules[name]
