"""Native kernels: a model as plain arrays (`SplinePlan`), evaluated by compiled code on the CPU or the GPU."""
