"""``python -m serving.cli``: the same as ``patronage``."""

from serving.cli.entry import main

main()
