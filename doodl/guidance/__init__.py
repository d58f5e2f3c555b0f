"""What the pixels are optimised for: losses on images in [-1, 1], one value per photo."""
