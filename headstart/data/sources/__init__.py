"""Sources: where the bytes of an image come from. Only modules of this folder open image files.

An image has an address: a path, a URL, or ``CONTAINER::MEMBER`` for an image in an archive or a table.
"""
