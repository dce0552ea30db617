"""Super-resolution of photographs: a small network enlarges luminance better than bicubic does."""
