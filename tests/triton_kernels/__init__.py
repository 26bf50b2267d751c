"""Our own versions of the well-known Triton exercises: kernels with the functions that launch them, one noun a file.

Each function takes torch tensors and gives new ones. What is right is decided in the test_triton_*.py beside this
folder.
"""
