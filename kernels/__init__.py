"""The operations that the Gramian is made of: per operation its definition, its torch form, and kernels for GPUs."""

from gramjd.kernels.dispatch import use_backend

__all__ = ["use_backend"]
