"""PyTorch's compiler: not there until it is used, and then as if it had been from the beginning."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import sys
from headstart.deferred_compiler import defer_compiler
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
    "a step of an optimizer": """
optimizer = torch.optim.AdamW([weight])
weight.sum().backward()
optimizer.step()
assert not real() and not torch.equal(weight.detach(), torch.ones(2))
torch._dynamo.list_backends
optimizer.step()
assert real() and torch._dynamo.graph_break.__module__ != "headstart.deferred_compiler"
""",
    "compiling": """
f = torch.compile(lambda x: x.sin() + 1, backend="eager")
assert f(weight).shape == (2,) and real()
""",
    "a function that is exempt from it": """
exempt = torch.compiler.disable(lambda x: x * 2, reason="registered before the import")
assert torch.equal(exempt(weight), 2 * weight)
assert not real()
f = torch.compile(lambda x: exempt(x) + 1, backend="eager", fullgraph=True)
try: f(weight)
except torch._dynamo.exc.Unsupported as error: assert "registered before the import" in str(error), error
else: assert False
assert torch.equal(exempt(weight), 2 * weight)
""",
}


SCOPED = {
    "nothing is left behind": """
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch) and sys.meta_path == before
""",
    "the compiler is imported as usual": """
import torch._dynamo
assert real() and torch._dynamo.__spec__.origin == torch._dynamo.__file__
""",
    "a question asked through torchvision": """
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False) and real()
""",
    "a function of torchvision that is exempt": """
from torchvision.tv_tensors import Image, wrap
image = Image(torch.zeros(3, 2, 2))
assert type(wrap(torch.ones(3, 2, 2), like=image)) is Image
f = torch.compile(lambda x: wrap(x + 1, like=image), backend="eager")
for _ in range(2): assert torch.equal(f(torch.zeros(3, 2, 2)).as_subclass(torch.Tensor), torch.ones(3, 2, 2))
assert real()
""",
}

IMPORT = """
import sys
before = list(sys.meta_path)
import torch
import headstart
assert headstart.load
assert "timm" in sys.modules and "torchvision" in sys.modules

def real():
    return hasattr(sys.modules["torch._dynamo"], "__file__")
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("use", SCOPED)
def test_after_an_import_of_the_library_the_compiler_is_as_it_would_be_without(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT + SCOPED[use]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("use", USES)
def test_the_compiler_is_there_when_it_is_used(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", START + USES[use]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
