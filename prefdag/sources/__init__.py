"""Fetch pinned files from the package index, the hub and local paths, and read archives."""
