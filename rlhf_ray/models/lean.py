"""transformers without scikit-learn and SciPy, wherever these are installed.

transformers imports them for assisted decoding and for object detection, which nothing here does; with pandas behind
them that is a fifth of the time in which an actor's process starts. Whoever wants them can import them as ever.
"""

import importlib

_CHECKS = ("is_scipy_available", "is_sklearn_available")
_IMPORTERS = ("transformers.generation.candidate_generator", "transformers.loss.loss_utils")


def import_lean_transformers() -> None:
    """Import the modules of transformers that would load them, as where they are not installed.

    Call it before anything else imports these modules.
    """
    from transformers import utils

    checks = {name: getattr(utils, name) for name in _CHECKS}
    utils.__dict__.update(dict.fromkeys(checks, lambda: False))
    try:
        for importer in _IMPORTERS:
            importlib.import_module(importer)
    finally:
        utils.__dict__.update(checks)
