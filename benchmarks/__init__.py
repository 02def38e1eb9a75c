"""The side-by-side measurements that the README quotes: `python -m benchmarks.NAME [--json FILE]`, run from the repository.

Each command measures both sides in one run and prints one table; `common.py` holds the format. What was tried and left, with
its reason, is in README.md of this folder. Not part of the installed package.
"""
