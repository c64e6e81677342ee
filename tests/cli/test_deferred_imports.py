"""PyTorch's compiler: not there until it is used, and then as if it had been from the beginning."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import sys
from headstart.cli.deferred_imports import defer_compiler
defer_compiler()
import torch

def real():
    return hasattr(sys.modules["torch._dynamo"], "__file__")

weight = torch.ones(2, requires_grad=True)
torch.optim.SGD([weight])
assert not real()
"""

USES = {
    "a name of it": "assert callable(torch._dynamo.list_backends); assert real()",
    "a name of its utilities": """
from torch._dynamo.utils import counters
assert real() and counters is torch._dynamo.utils.counters
""",
    "a name of a stand-in that is held": """
held = torch._dynamo
import torch._dynamo.config
assert real() and held is not torch._dynamo and held.utils is torch._dynamo.utils
""",
    "a module that it imports itself": """
import torch._dynamo.config as config
assert real() and config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert config.__spec__.origin == config.__file__
""",
    "a module that it does not import": """
import torch._dynamo.debug_utils as more
assert real() and more is torch._dynamo.debug_utils
""",
    "a module that there is not": """
try: import torch._dynamo.nothing_of_this_name
except ModuleNotFoundError: assert real()
else: assert False
""",
    "its question": """
from torch._dynamo.utils import is_compile_supported
assert not real() and is_compile_supported("cpu") in (True, False)
assert real()
""",
    "compiling": """
f = torch.compile(lambda x: x.sin() + 1, backend="eager")
assert f(weight).shape == (2,) and real()
""",
    "a function that is exempt from it": """
exempt = torch.compiler.disable(lambda x: x * 2, reason="told before the compiler was there")
assert torch.equal(exempt(weight), 2 * weight)
assert not real()
f = torch.compile(lambda x: exempt(x) + 1, backend="eager", fullgraph=True)
try: f(weight)
except torch._dynamo.exc.Unsupported as error: assert "told before the compiler was there" in str(error), error
else: assert False
assert torch.equal(exempt(weight), 2 * weight)
""",
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("use", USES)
def test_the_compiler_is_there_when_it_is_used(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", START + USES[use]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
