"""Active learning: models sample where they disagree, and a reference labels what they found."""
