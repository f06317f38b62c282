"""Task families, a file each: the texts or examples they ask, how they are scored, what they read."""
