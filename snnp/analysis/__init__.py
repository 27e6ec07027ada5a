"""What a model learned and how well: errors, properties, pictures."""
