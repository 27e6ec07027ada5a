"""What is known about a dataset, its card, and the recipe that makes it."""
