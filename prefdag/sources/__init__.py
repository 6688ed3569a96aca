"""Where files come from: package index, hub, local paths, archives."""
