"""The spline-based neural network potential (s-NNP), its classical limits, and its compiled and scripted twins."""
