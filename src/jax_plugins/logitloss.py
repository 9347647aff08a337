"""Make the kernel known to JAX as JAX starts, for programs that were compiled in another process.

JAX imports the modules of `jax_plugins` when it looks for devices, and calls their `initialize`.
The call of the kernel in a program that is loaded then must have a name already: no call of
logitloss comes before it.
"""

from __future__ import annotations

from pathlib import Path


def initialize() -> None:
    # Whoever uses JAX alone must not notice a failure.
    try:
        import jax

        if _takes_our_interface(Path(jax.ffi.include_dir())):
            from logitloss._kernel import kernel

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
