"""Files of features that other tools made, read without trusting them."""
