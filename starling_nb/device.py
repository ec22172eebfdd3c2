"""Device, precision, attention backend, threads and progress: each choice with its reason."""

import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm.std import tqdm

from starling_nb.profiles import Profile

T = TypeVar("T")

BF16_CAPABILITY = (8, 0)  # Ampere; below it bfloat16 is emulated and slow


@dataclass(frozen=True)
class Device:
    """Where and how a run computes.

    `dtype` is the precision of compute: weights stay float32, `autocast` goes below them. `reasons`
    has one entry each for "device", "dtype", "attention" and "threads".
    """

    device: torch.device
    dtype: torch.dtype
    attention: str
    threads: int
    reasons: dict[str, str]

    def autocast(self) -> AbstractContextManager:
        """A context in which matrix products run in `dtype`; it does nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def report(self) -> str:
        """One line per choice, with its reason."""
        choices = {
            "device": str(self.device),
            "dtype": dtype_name(self.dtype),
            "attention": self.attention,
            "threads": str(self.threads),
        }
        return "\n".join(f"{name}: {choices[name]} ({self.reasons[name]})" for name in choices)


def choose_device(profile: Profile) -> Device:
    """The device and precision that `profile` gets on this machine; sets torch's thread count.

    Raises RuntimeError with the remedy when the profile wants CUDA and there is none. Whether a GPU
    computes in bfloat16 is read from its compute capability, since `is_bf16_supported()` also says
    yes where it is emulated.
    """
    reasons = {
        "attention": "scaled_dot_product_attention comes with torch and runs on every device",
        "threads": f"fixed by profile '{profile.name}', because sums depend on the thread count",
    }
    dtype = getattr(torch, profile.precision)
    if profile.device == "cuda":
        if not torch.cuda.is_available():
            cause = (
                "this torch was built without CUDA; install a CUDA build of torch"
                if torch.version.cuda is None
                else "torch finds no CUDA device; check the driver with nvidia-smi"
            )
            raise RuntimeError(
                f"profile '{profile.name}' needs a CUDA device: {cause}, or use profile 'cpu'"
            )
        device = torch.device("cuda", torch.cuda.current_device())
        capability = torch.cuda.get_device_capability(device)
        version = f"{capability[0]}.{capability[1]}"
        reasons["device"] = f"{torch.cuda.get_device_name(device)}, compute capability {version}"
        if dtype == torch.bfloat16 and capability < BF16_CAPABILITY:
            dtype = torch.float32
            reasons["dtype"] = f"bfloat16 needs compute capability 8.0, this GPU has {version}"
        else:
            reasons["dtype"] = f"asked for by profile '{profile.name}'"
    else:
        device = torch.device("cpu")
        reasons["device"] = f"profile '{profile.name}' runs on the processor"
        reasons["dtype"] = f"asked for by profile '{profile.name}'"
    torch.set_num_threads(profile.threads)
    return Device(device, dtype, "sdpa", profile.threads, reasons)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name as a profile writes it, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def progress(
    iterable: Iterable[T] | None = None, *, total: int | None = None, desc: str
) -> "tqdm[T]":
    """A tqdm bar: a widget in a notebook, a text bar in a terminal, else at most ten plain lines.

    Plain lines also come when the environment variable STARLING_BATCH is set, as batch runs do. All
    of it goes to stderr: it holds timings, and those must not enter a notebook's committed outputs,
    from which stderr is stripped while stdout is kept.
    """
    in_kernel = running_in_kernel()
    if os.environ.get("STARLING_BATCH") or not (in_kernel or sys.stderr.isatty()):
        return PlainLines(iterable, total=total, desc=desc)
    if in_kernel:
        from tqdm import notebook

        if notebook.IProgress is not None:  # None: ipywidgets is absent or too old for tqdm
            return notebook.tqdm(iterable, total=total, desc=desc)
    return tqdm(iterable, total=total, desc=desc)


def running_in_kernel() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class PlainLines(tqdm):
    """A tqdm bar that prints a line at each tenth of the way, and nothing else.

    A fast loop skips lines (tqdm redraws every 0.1 s at most) but not the last. Without a total the
    only line comes at the end.
    """

    disable: bool
    tenths_printed = 0

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line if another tenth is done; `msg` and `pos`, which place a bar, are unused."""
        tenths = min(10, int(10 * self.n / self.total)) if self.total else 0
        if tenths > self.tenths_printed:
            self.tenths_printed = tenths
            self.print_line(f"{10 * tenths} % ({self.n}/{self.total})")
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear: a printed line stays."""

    def close(self) -> None:
        """Print what is still to be printed, and end."""
        if self.disable:
            return
        self.display()
        if not self.total:
            self.print_line(f"{self.n} done")
        self.disable = True
        self._decr_instances(self)

    def print_line(self, text: str) -> None:
        seconds = self.format_dict["elapsed"]
        print(
            f"{self.desc.removesuffix(': ')}: {text} in {seconds:.0f} s", file=self.fp, flush=True
        )
