"""`python -m launch …` is the command `collectives …`."""

from __future__ import annotations

import sys

from launch.command_line import main

if __name__ == "__main__":
    sys.exit(main())
