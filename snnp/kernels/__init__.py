"""Compiled kernels: a model as plain arrays (`SplineParameters`), evaluated by compiled code on the CPU or the GPU."""
