"""Networks load without scikit-learn and SciPy, which stay there for whoever wants them."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
from rlhf_ray import SFTTrainer  # which asks transformers what is installed before networks are imported
import rlhf_ray.models.load, transformers.generation
assert not {"sklearn", "scipy", "pandas"} & set(sys.modules)
import scipy.optimize, sklearn.metrics
"""


def test_they_are_neither_loaded_nor_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
