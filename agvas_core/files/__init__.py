"""Folders and picture files, as both training and evaluation read them."""
