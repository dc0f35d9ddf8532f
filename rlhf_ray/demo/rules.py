"""Rewards that a reader can check: what PEP 257 asks of a docstring's summary line, and two rules against nonsense.

Each is f(prompt, response) -> float in [0, 1]; an empty response earns nothing. Used by import path, for example
`rlhf_ray.demo.rules:imperative_verb`.
"""

import re
from itertools import pairwise

#: "The docstring line length should be limited to 72 characters" (PEP 8).
LINE_CHARS = 72

_VERBS = """
abort accept acquire activate add adjust advance allocate allow append apply arrange ask assert assign associate
attach attempt authenticate begin bind block break build cache calculate call cancel capture change check choose clean
clear clone close collapse collect combine compare compile compress compute concatenate configure confirm connect
construct consume convert copy count create customize deactivate debug decide declare decode decompress decorate
decrease decrement define delegate delete deliver destroy detach detect determine disable disassemble discard
disconnect dispatch display divide do download draw drop dump duplicate emit empty emulate enable encapsulate encode
encrypt end ensure enter enumerate escape establish evaluate examine exchange execute exit expand export expose
extend extract fail feed fetch fill filter finalize find finish fix flatten flush fold force fork format forward
free freeze generate get give grab group guess handle hash hide identify ignore implement import increase
increment indent indicate initialize insert inspect install instantiate instruct interpret interrupt invert invoke
issue iterate join keep kill launch let limit link list listen load locate lock log look lookup lower make manage map
mark match measure merge mock modify monitor move multiply normalize notify obtain offer open output override pack
parse pass patch pause perform place play poll pop populate post prepare prepend prevent print process produce prompt
provide publish push put query queue quit quote raise read rebind rebuild receive recompute record redirect redo
reduce refresh register reject release reload remember remove rename render reopen repeat replace report represent
request require resend reserve reset resize resolve restore resume retrieve retry return reverse rewind rotate round
run sample save scan schedule scroll search seek select send separate serialize serve set setup shift show shuffle
shut shutdown signal simulate skip sleep slice sort spawn specify split square start stop store stream strip subclass
subscribe substitute subtract suspend swap switch synchronize take terminate test toggle tokenize trace track transfer
transform translate traverse treat trigger trim truncate try turn unbind undo unescape uninstall unlink unload unlock
unmap unpack unquote unregister unset unwrap update upgrade upload use validate verify visit wait wake walk warn watch
wrap write yield
"""
#: Verbs that standard-library summaries begin with, in the imperative.
IMPERATIVE_VERBS = frozenset(_VERBS.split())

_PROMPT_NAME = re.compile(r"\bdef\s+(?:\w+\.)*(\w+)\s*\(")
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WORD = re.compile(r"\w+")


def starts_with_capital(prompt: str, response: str) -> float:
    """The first character is a capital letter."""
    return float(response.strip()[:1].isupper())


def imperative_verb(prompt: str, response: str) -> float:
    """It says what to do ("Return ..."), not what is done ("Returns ...") or what something is ("The ...")."""
    first = _WORD.match(response.strip())
    return float(first is not None and first[0].lower() in IMPERATIVE_VERBS)


def one_sentence(prompt: str, response: str) -> float:
    """One sentence that ends with one period: no second one, no ellipsis, nothing after it."""
    text = response.strip()
    ends = text.endswith(".") and not text.endswith("..") and bool(_WORD.search(text))
    return float(ends and not re.search(r"[.!?]\s", text))


def fits_line(prompt: str, response: str) -> float:
    """One line of at most 72 characters."""
    text = response.strip()
    return float(bool(text) and "\n" not in text and len(text) <= LINE_CHARS)


def mentions_name(prompt: str, response: str) -> float:
    """Share of the words in the function's name that the response uses.

    `set_allowed_domains` has three words. A word counts as used when one in the response begins with it, as
    "Initialize" does with "init". Words of one or two letters are ignored; any answer mentions a name without others.
    """
    said = [word.lower() for word in _WORD.findall(response)]
    if not said:
        return 0.0
    name = _PROMPT_NAME.search(prompt)
    words = [word.lower() for word in _NAME_WORD.findall(name[1])] if name else []
    words = [word for word in words if len(word) >= 3]
    if not words:
        return 1.0
    return sum(any(spoken.startswith(word) for spoken in said) for word in words) / len(words)


def no_repetition(prompt: str, response: str) -> float:
    """No word directly repeated and no three words in a row said twice."""
    words = [word.lower() for word in _WORD.findall(response)]
    triples = list(zip(words, words[1:], words[2:], strict=False))
    doubled = any(word == following for word, following in pairwise(words))
    return float(bool(words) and not doubled and len(set(triples)) == len(triples))
