"""The whole model behind HTTP: segmentation, a dialogue about an image, a page. ``agvas serve`` starts it."""
