"""One file per published folder layout: each tells its own folders, and lists their items."""
