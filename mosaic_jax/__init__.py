"""Mosaic in JAX: data-free federated distillation through a mixture of class experts (arXiv 2505.19699).

Importing this package imports no JAX; its modules do.
"""

__version__ = "0.1.0"
