"""A laboratory of booted Debian nodes on one machine, for the demo and the tests.

The command line is ``tests/lab/labctl.py``; ``tests/lab/README.md`` tells how it works.
"""
