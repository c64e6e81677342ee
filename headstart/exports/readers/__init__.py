"""Programs that open exported files with nothing of Headstart imported; a format names one, see ``reader_process``."""
