"""Images: datasets of files and arrays, one decode policy, views, an ordered parallel loader."""
