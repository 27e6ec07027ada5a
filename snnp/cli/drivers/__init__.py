"""Commands for what drives the models from outside, and for many structures at once."""
