"""The compiled kernels of the CPU: library, memory layout, calls, lists, and training passes."""
