"""Compiles the kernels at installation where a compiler is there; everything else stands in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = runpy.run_path(str(Path(__file__).with_name("snnp") / "kernels" / "build.py"))


class BuildKernels(build_ext):
    """A plain C library instead of an extension module: it fits every Python version and links to no torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / KERNELS["library_name"]())

    def build_extension(self, ext: Extension) -> None:
        try:
            KERNELS["build"](Path(self.get_ext_fullpath(ext.name)))
        except KERNELS["BuildError"] as error:
            self.warn(f"snnp will run on torch alone: {error}")

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib) / self.get_ext_filename("snnp.kernels.library")
        if built.is_file():
            super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """One wheel per platform, for all versions of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("snnp.kernels.libsnnp_kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
