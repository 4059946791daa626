"""Compile every kernel of the sketch for a card that need not be there, and print what the card would have to give.

`python -m tests.unit.recording.compile_for_cards 90` prints a line for each kernel and variant: its name, registers of
a thread, bytes spilled from them, and bytes of shared memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.recording import sketch_triton, triton_kernels
from outlier_moe.recording.tally import Scale

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.uint16: "*u16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps",)


class Launch:
    """Stands for a kernel: keeps what it is launched with."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **named: self.launches.append(
            (self.kernel, dict(zip(self.kernel.arg_names, given, strict=False)) | named)
        )


def launched() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each kernel with its arguments, as sites of two formats, both scales and several widths launch it."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    for name, kernel in list(vars(triton_kernels).items()):
        if hasattr(kernel, "arg_names") and not name.startswith("_"):
            setattr(triton_kernels, name, Launch(kernel, launches))
    scales: tuple[Scale, ...] = ("none", "token_rms")
    for dtype in (torch.bfloat16, torch.float32):
        for scale in scales:
            for n_features in (576, 5120, 16384):
                x = torch.empty((1, 2048, n_features), dtype=dtype, device="meta")
                union = torch.empty(x.shape, dtype=torch.uint8, device="meta")
                sketch_triton.start_sketch(x, ladder=Ladder(), union=union, scale=scale)
    counted = {name: torch.empty(0, dtype=torch.int32) for name in ("histogram", "later")}
    union = {"union": torch.empty(0, dtype=torch.uint8), "n_positions": 2048, "n_features": 576}
    launches.append((triton_kernels.tally_union.kernel, {**union, **counted, **sketch_triton.TILE}))
    seen = set()
    for kernel, arguments in launches:
        shown = [str(getattr(value, "dtype", value if name.isupper() else None)) for name, value in arguments.items()]
        variant = (kernel.__name__, *shown)
        if variant not in seen:
            seen.add(variant)
            yield kernel, arguments


def compiled(kernel: Any, arguments: dict[str, Any], target: GPUTarget) -> Any:
    """A kernel's machine code for one set of arguments."""
    constants = {name: arguments[name] for name in kernel.arg_names if name.isupper()}
    signature = {}
    for name in kernel.arg_names:
        value = arguments[name]
        signature[name] = "constexpr" if name in constants else "i32" if isinstance(value, int) else TYPES[value.dtype]
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    return triton.compile(ASTSource(kernel, signature=signature, constexprs=constants), target=target, options=options)


def main() -> None:
    """Compile all of them for the card that the command line names."""
    capability = int(sys.argv[1])
    target, assembler = GPUTarget("cuda", capability, 32), get_ptxas(capability).path
    for kernel, arguments in launched():
        code = compiled(kernel, arguments, target)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "kernel.ptx")
            file.write_text(code.asm["ptx"])
            architecture = re.search(r"\.target (\w+)", code.asm["ptx"])
            assert architecture is not None
            command = [assembler, "-v", "-arch", architecture[1], str(file), "-o", str(file.with_suffix(".cubin"))]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
        told = said.stdout + said.stderr
        registers, spilled = re.search(r"Used (\d+) registers", told), re.findall(r"(\d+) bytes spill stores", told)
        assert registers is not None
        sys.stdout.write(f"{kernel.__name__} {registers[1]} {max(map(int, spilled))} {code.metadata.shared}\n")


if __name__ == "__main__":
    main()
