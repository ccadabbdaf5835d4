"""``agvas batch``: millions of images in shards, by many workers on one machine or a cluster; each image has exactly one result."""
