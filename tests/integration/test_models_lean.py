"""Networks load without scikit-learn, which stays there for whoever wants it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
import rlhf_ray.models.load, transformers.generation
assert not {"sklearn", "scipy", "pandas"} & set(sys.modules)
import sklearn.metrics
"""


def test_scikit_learn_is_not_loaded_and_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
