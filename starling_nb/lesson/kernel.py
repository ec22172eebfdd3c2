"""The kernel of batch runs: a failing shell line stops its cell, and the peak memory is recorded.

Jupyter's own kernel goes on after `!exit 3` or a failed `%pip install`, and nothing that runs a
notebook can see it. Started as `python -m starling_nb.lesson.kernel PEAK_FILE -f CONNECTION_FILE`.
"""

import sys
from pathlib import Path
from subprocess import CalledProcessError

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.utils.process import get_output_error_code, system
from IPython.utils.text import SList

from starling_nb.store import peak_rss_mb, write_json


class StrictShell(ZMQInteractiveShell):
    """A shell whose `!command`, `x = !command` and `%pip` raise when the command fails."""

    def system(self, cmd: str) -> None:
        """Run `!cmd`; CalledProcessError when its exit status is not 0."""
        self.check(system(self.var_expand(cmd, depth=1)), cmd)

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> SList | str:
        """The output of `!cmd`, as lines if `split`; CalledProcessError if its status is not 0."""
        out, err, status = get_output_error_code(self.var_expand(cmd, depth=depth + 1))
        self.check(status, cmd)
        return SList((out + err).splitlines()) if split else out + err

    def ask_exit(self) -> None:
        """Make `exit` and `quit` end the run as sys.exit does; a kernel may let later cells run."""
        raise SystemExit(0)

    def check(self, status: int | None, cmd: str) -> None:
        self.user_ns["_exit_code"] = status
        if status != 0:
            raise CalledProcessError(-2 if status is None else status, cmd)  # None: interrupted


class StrictKernel(IPythonKernel):
    """IPython's kernel with the strict shell."""

    shell_class = StrictShell


def write_peak(path: Path) -> None:
    """Write the process's peak memory, and the GPU's where torch used one, to `path` as JSON."""
    peak = {"peak_rss_mb": peak_rss_mb(), "peak_gpu_mb": None, "gpu": None}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_gpu_mb"] = round(torch.cuda.max_memory_reserved() / 1e6, 1)
        peak["gpu"] = torch.cuda.get_device_name()
    write_json(path, peak)


def launch() -> None:
    """Serve one kernel until it is shut down; the first argument is where its peak memory goes.

    It is written after every cell: at the end a busy machine may kill the kernel before it can.
    """
    peak_file = Path(sys.argv.pop(1))
    app = IPKernelApp.instance(kernel_class=StrictKernel)
    app.initialize()
    app.kernel.shell.events.register("post_run_cell", lambda _: write_peak(peak_file))
    app.start()


if __name__ == "__main__":
    from starling_nb.lesson import kernel  # not __main__: IPython replaces that module

    kernel.launch()
