"""``agvas profile``: how fast a bundle is on this machine, and how close to the machine's limits."""
