"""From an image to its score map and result: segmenter, scorer, instruction, batching."""
