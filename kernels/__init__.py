"""The operations that the Gramian is made of: per operation its definition, its torch form, and kernels for GPUs."""

from gramjd.kernels.dispatch import use_backend
from gramjd.kernels.products import Products, current_products

__all__ = ["Products", "current_products", "use_backend"]
