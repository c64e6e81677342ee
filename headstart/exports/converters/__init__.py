"""Programs that convert an ExportedProgram in an isolated environment; nothing of Headstart is imported there."""
