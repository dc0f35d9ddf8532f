"""transformers' generation code without scikit-learn, wherever that is installed.

transformers imports it for assisted decoding, which nothing here does; with SciPy and pandas behind it that is a fifth
of the time in which an actor's process starts. Afterwards scikit-learn can be imported as ever.
"""

import importlib
import sys

_NAME = "sklearn"


def import_without_sklearn() -> None:
    """Import `transformers.generation` first thing; call before anything else does."""
    if _NAME in sys.modules:
        return  # it is there already
    sys.modules[_NAME] = None  # type: ignore[assignment]  # not to be found
    try:
        importlib.import_module("transformers.generation.candidate_generator")
    finally:
        del sys.modules[_NAME]
