"""Work over many images in shards, on several processes or machines."""
