"""What is installed here, what would work, and why the rest would not: ``agvas doctor``."""
