"""Pages of a line: the live page and the review page. They load nothing from elsewhere."""
