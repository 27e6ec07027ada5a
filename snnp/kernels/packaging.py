"""Setuptools commands, named in pyproject.toml: the kernels are compiled where a compiler is there."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

__all__ = ["BuildKernels", "Wheel"]

# By path: at build time snnp is not installed.
KERNELS = runpy.run_path(str(Path(__file__).with_name("build.py")))


class BuildKernels(build_ext):
    """A plain C library instead of an extension module: it fits every Python version and links to no torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / KERNELS["library_name"]())

    def build_extension(self, ext: Extension) -> None:
        if os.environ.get("SNNP_KERNELS") == "off":  # as at run time; the Makefile compiles them by itself
            return
        try:
            KERNELS["build"](Path(self.get_ext_fullpath(ext.name)))
        except KERNELS["BuildError"] as error:
            self.warn(f"snnp will run on torch alone: {error}")

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib) / self.get_ext_filename(self.extensions[0].name)
        if built.is_file():
            Path(__file__).with_name("lib").mkdir(exist_ok=True)
            super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """One wheel per platform, for all versions of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]
