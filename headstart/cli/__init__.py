"""Command line: one module per group of commands, thin wrappers around the library."""
