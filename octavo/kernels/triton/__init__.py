"""Triton kernels for NVIDIA and AMD GPUs, one op a file, each equal to its torch reference in `octavo.kernels`.

Importing this package needs no Triton; importing one of its modules does.
"""
