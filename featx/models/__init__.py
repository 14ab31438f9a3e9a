"""A backbone and a head as one model: trained, evaluated, saved, and used on new images."""
