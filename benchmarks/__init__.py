"""This project beside its peers, the machine's limit and itself; every module is a command."""

SCRIPTS = ("convex_imaml", "convex_maml", "maml", "imaml", "reptile", "cavia")
