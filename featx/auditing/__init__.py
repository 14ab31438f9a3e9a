"""What is doubtful in a dataset: duplicates, labels, pictures, splits."""
