"""The kernels of the GPU, written in Triton; see docs/decisions/010-gpu-kernel.md."""
