"""What runs a network: uint8 batches of pixels in, one float32 array a tap out."""
