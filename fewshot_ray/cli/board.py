"""TensorBoard on a sweep, local or remote."""

from __future__ import annotations

import io
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType

from rich.console import Console

from fewshot_ray.cli.show import read_sweep
from fewshot_ray.errors import UserError
from fewshot_ray.report.board import Mirror

FIRST_COPY_SEC = 5.0
"""Time to wait for a remote sweep's events before TensorBoard starts; the rest appear as they are copied."""
MOST_IMAGES = 50
"""Images that TensorBoard shows per kind and trial; with its default of 10, trials would be shown at different steps."""


def show_board(sweep: str, *, host: str = "127.0.0.1", port: int = 6006, console: Console) -> int:
    """Serve TensorBoard for a sweep's folder, or a copy of a remote one's events, until Ctrl-C, SIGTERM or SIGHUP; returns the exit code.

    Raises UserError where there is no such sweep, or where the port is taken.
    """
    folder = read_sweep(sweep)[0].folder
    check_port(host, port)
    with _signals_interrupt():
        try:
            with ExitStack() as stack:
                if folder.local is not None:
                    trials = folder.local / "trials"
                else:
                    mirror = stack.enter_context(Mirror(folder, lambda line: console.print(line, soft_wrap=True)))
                    with console.status("copying the events"):
                        mirror.wait(FIRST_COPY_SEC)
                    trials = mirror.trials
                with console.status("starting TensorBoard"):
                    url = _serve(trials, host, port)
                console.print(f"TensorBoard of {folder.name}: {url} (Ctrl-C ends it)", soft_wrap=True)
                if not any(trials.glob("*/events.out.tfevents.*")):
                    console.print("there are no events yet; they show within half a minute of an evaluation")
                threading.Event().wait()
        except KeyboardInterrupt:
            pass
    return 0


def check_port(host: str, port: int) -> None:
    """Raise UserError where the port can't be used; called before anything is copied."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        # Python adds the address to the system's message.
        raise _not_to_be_had(host, port, (getattr(error, "strerror", None) or str(error)).split(" (")[0]) from error


def _not_to_be_had(host: str, port: int, why: str) -> UserError:
    return UserError(f"--port {port}: cannot be had on {host} ({why}); another one is right")


def _serve(trials: Path, host: str, port: int) -> str:
    """Start TensorBoard in threads of this process; returns its URL once it answers."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(
        ["", "--logdir", str(trials), "--host", host, "--port", str(port), "--samples_per_plugin", f"images={MOST_IMAGES}"],
    )
    try:
        with redirect_stderr(io.StringIO()):  # it would mention options that this command doesn't have
            return str(board.launch())
    except program.TensorBoardServerException as error:
        raise _not_to_be_had(host, port, error.msg) from error


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Context in which the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt and later ones are ignored during the cleanup.

    Has no effect outside of the main thread, which alone may set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
