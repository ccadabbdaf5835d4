"""``agvas batch``: images by the million, in shards, by many workers on one machine or a cluster, and nothing lost or twice."""
