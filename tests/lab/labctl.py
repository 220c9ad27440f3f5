#!/usr/bin/env python3
"""The lab's command line; see --help and tests/lab/README.md."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (asked of the machine, before the imports that need it)
    sys.exit("labctl: needs Python 3.11 or newer on the machine that runs the lab")

sys.dont_write_bytecode = True  # no files of root in someone's checkout

from llamalab.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
