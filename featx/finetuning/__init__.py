"""Fine-tuning: the top of a backbone trained on from the head that the cache gave."""
