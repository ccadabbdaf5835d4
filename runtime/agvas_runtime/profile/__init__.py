"""How fast a bundle is on this machine, and how near it comes to what the machine can do: ``agvas profile``."""
