"""The command line: one module per group of commands, thin over the library."""
