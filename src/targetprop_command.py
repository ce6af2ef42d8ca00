"""The command's first moments: the imports take seconds, and Ctrl-C in them is one sentence too."""

import os
import signal
import sys
from types import FrameType


def stopped(number: int, frame: FrameType | None) -> None:
    """End at once: an exception within the imports could come out as anything."""
    os.write(2, b"targetprop: stopped before it began; nothing was lost.\n")
    os._exit(128 + number)


def main() -> int:
    """Run a command; returns the exit code."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:  # who ignores it, as nohup and a shell's background do, goes on ignoring it
        signal.signal(signal.SIGINT, stopped)
    from targetprop.commands.main import main

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(main())
