"""What a run leaves behind for people: progress on the terminal and the HTML report."""
