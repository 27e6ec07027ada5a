"""The command line: the only part of snnp that prints. `snnp.cli.main:run` is the entry point."""

__all__: list[str] = []
