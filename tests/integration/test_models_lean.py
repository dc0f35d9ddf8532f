"""Networks load without scikit-learn and SciPy, which stay there for whoever wants them."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
{first}
import rlhf_ray.models.load, transformers.generation
assert not {{"sklearn", "scipy", "pandas"}} & set(sys.modules)
import scipy.optimize, sklearn.metrics
"""


@pytest.mark.parametrize("first", ["import transformers", "from rlhf_ray import SFTTrainer"])
def test_they_are_neither_loaded_nor_lost(first: str) -> None:
    script = SCRIPT.format(first=first)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
