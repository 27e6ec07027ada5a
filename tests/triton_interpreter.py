"""Triton's interpreter without its double work, for tests on machines without a GPU: import this before a kernel runs.

Whenever a kernel calls a function, the interpreter replaces all of `triton.language` anew, though the kernel's own call
has done so: a quarter of its time. Functions whose language is already replaced are called at once.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import triton.language as tl
from triton.language.core import is_builtin
from triton.runtime import interpreter

_replace = interpreter._patch_lang


def _replace_once(function: Any) -> Any:
    languages = [each for each in function.__globals__.values() if inspect.ismodule(each) and each in (tl, tl.core)]
    if languages and not any(is_builtin(each.arange) for each in languages):
        return interpreter._LangPatchScope()
    return _replace(function)


if not torch.cuda.is_available():
    interpreter._patch_lang = _replace_once
