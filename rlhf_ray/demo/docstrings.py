"""Function signatures and docstring summaries, read with `ast` from the running Python's standard library."""

import ast
import random
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Folders below the standard library that are not it, or whose docstrings document nothing.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
MAX_SIGNATURE_CHARS = 120
MAX_SUMMARY_CHARS = 100

_SENTENCE_END = re.compile(r"(?<=\.)\s")


@dataclass(frozen=True)
class Example:
    """One function and what its author says it does."""

    signature: str  # "def chown(path, user=None, group=None)", or with its class "def Path.rename(self, target)"
    summary: str  # the docstring's first sentence, on one line
    name: str  # without the class
    module: str


@dataclass(frozen=True)
class Split:
    """Examples by use. No function's name occurs in two parts, so `close` is not learned and then asked again."""

    demonstrations: list[Example]
    preferences: list[Example]
    prompts: list[Example]
    held_out: list[Example]


def read_docstrings() -> list[Example]:
    """Every documented function of the standard library, sorted by module and place; one per signature."""
    root = Path(sysconfig.get_path("stdlib"))
    examples: dict[str, Example] = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not SKIPPED_FOLDERS.intersection(parts):
            for example in _read_file(file, ".".join(parts)):
                examples.setdefault(example.signature, example)
    return list(examples.values())


def split_examples(examples: list[Example], seed: int, held_out: int = 256, prompts: int = 1024) -> Split:
    """Divide by function name: about `held_out` and `prompts` examples aside, all others for the supervised stages.

    The reward model's pairs come from the demonstrated functions: more text to learn from than a share of its own
    would be. PPO's prompts are new to policy and reward model alike, as the held-out ones are, so that the reward seen
    in training can be compared with the one in evaluation.
    """
    by_name: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_name[example.name].append(example)
    groups = list(by_name.values())
    rng = random.Random(seed)
    rng.shuffle(groups)
    aside: list[Example] = []
    asked: list[Example] = []
    shown: list[Example] = []
    for group in groups:
        # Names used again and again (__init__, close) would fill a small part with near-copies: they are for training.
        if len(group) <= 4 and len(aside) + len(group) <= held_out:
            aside += group
        elif len(group) <= 4 and len(asked) + len(group) <= prompts:
            asked += group
        else:
            shown += group
    for part in (aside, asked, shown):
        rng.shuffle(part)
    return Split(demonstrations=shown, preferences=shown, prompts=asked, held_out=aside)


def _read_file(file: Path, module: str) -> Iterator[Example]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(file.read_bytes())
    for function, owner in _functions(tree, owner=None):
        summary = _summary(ast.get_docstring(function))
        signature = _signature(function, owner)
        if summary and len(signature) <= MAX_SIGNATURE_CHARS:
            yield Example(signature, summary, function.name, module)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(node: ast.AST, owner: str | None) -> Iterator[tuple[Function, str | None]]:
    """All functions below a node, with the name of the class they are methods of."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child, owner
            yield from _functions(child, owner=None)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, owner=child.name)
        elif isinstance(child, ast.stmt):
            yield from _functions(child, owner)


def _signature(function: Function, owner: str | None) -> str:
    keyword = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    name = f"{owner}.{function.name}" if owner else function.name
    return f"{keyword} {name}({ast.unparse(function.args)})"


def _summary(docstring: str | None) -> str | None:
    """The first sentence of the first paragraph, if it is one line of prose; many authors wrap it."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    sentence = _SENTENCE_END.split(paragraph)[0]
    is_prose = len(sentence.split()) >= 2 and sentence[0].isalpha() and sentence.isascii()
    return sentence if is_prose and len(sentence) <= MAX_SUMMARY_CHARS else None
