"""Make the kernel known to JAX as JAX starts, for programs that were compiled in another process.

JAX imports what packages name as their `jax_plugins` when it first looks for devices, and calls
`initialize`. A compiled program that is loaded then finds the kernel, although logitloss has not
been called yet.
"""

from __future__ import annotations

from pathlib import Path

import jax

from logitloss._kernel import kernel


def initialize() -> None:
    # Programs that use JAX without logitloss must not notice a failure.
    try:
        if _takes_our_interface(Path(jax.ffi.include_dir())):
            jax.ffi.register_ffi_target("logitloss", kernel.xla_handler(), platform="cpu")
    except Exception:
        return


def _takes_our_interface(headers: Path) -> bool:
    """Whether XLA's version of its foreign function interface is that of xla.c or a later minor.

    If XLA refused the target, it would refuse the CPU as well, which has no devices yet.
    """
    text = (headers / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    lines = set(text.splitlines())
    return "#define XLA_FFI_API_MAJOR 0" in lines and "#define XLA_FFI_API_MINOR 0" not in lines
