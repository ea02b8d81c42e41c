"""The operations that the Gramian is made of: per operation its definition, its torch form, and kernels for GPUs.

The alphabet of shapes, the same in every module:

    m     losses
    b     rows of a batch axis
    K     stacked rows
    R     rows, R = K b, in the order (k, n): the row of stacked row k and sample n is k b + n
    T     positions that a row sums over
    i, o  inputs and outputs of a product
    g     groups
    d     numbers of a given row, or of a row of a table
    P, q  output pixels and kernel offsets of a convolution
    V, U  rows of a table, and those of them that ids name

A second factor has the suffix 2: x2 [g, b2, T2, i] and c2 [K2, g, b2, T2, o], with R2 rows. In formulas n and m are
samples, k and l stacked rows, t and s positions. J are the rows, G their Gram matrix; a tensor's own letter is small in
its given shape (x, c) and large as a matrix (X, C).
"""

from gramjd.kernels.dispatch import use_backend
from gramjd.kernels.products import Products, current_products

__all__ = ["Products", "current_products", "use_backend"]
