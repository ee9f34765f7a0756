"""Three C++ files, compiled against the headers that jaxlib ships. GCC or clang: it is written in their vector types."""

import jax.ffi
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class Library(build_ext):
    """A library that `ctypes` opens, not a module of Python: one for all versions of it."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + ".so"


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "easyfn_kernels._thin",
            ["src/thin.cc", "src/attention.cc", "src/instructions.cc"],
            depends=["src/common.h", "src/rows.inc", "src/attention.inc"],
            language="c++",
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-Wno-psabi",  # vectors are never handed from one function to another
                "-Wno-maybe-uninitialized",  # of undefined parts in GCC's own headers
                f"-isystem{jax.ffi.include_dir()}",
            ],
        )
    ],
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
)
