"""The backends of Keras: one adapter each, and only there is a backend spoken to directly."""
