"""Pages beside the line: what a station sees now, and a person's word on what it has seen. They load nothing from elsewhere."""
