"""Commands for what drives the models from outside, and for many at once: structures, or all that is bundled."""
