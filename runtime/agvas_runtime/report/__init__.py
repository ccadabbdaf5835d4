"""Progress on the terminal and the HTML report of a run."""
