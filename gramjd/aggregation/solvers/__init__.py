"""Convex problems that aggregators share, in terms of the Gramian.

**Exact** means, for every aggregator that says so: the answer is that of a Gramian `G'` which `G` could have been
rounded from,

    |G'_ij - G_ij| <= k m eps |g_i| |g_j|,        k = `rounding.KNOWN` = 8,

m the number of losses and eps that of float64, or of the dtype of `G` where rounding has left `G` with eigenvalues
below zero. So what `G` determines is found to a small multiple of what its own rounding would change, and bounds such
as `w >= u` hold without any error. In the optimality conditions it reads: with `y = G w` and `t = sum_j w_j |g_j|`,
what should be zero or more is at least `-k m eps t |g_i|`, and what should be zero no more than that.

Where gradients nearly cancel t is large beside the update, and that part of it is not determined. For a singular `G`
the weights are not unique, though `J^T w` is.

That is for devices whose values may be looked at, as a CPU's. Elsewhere the number of steps is fixed, and answers come
from an interior-point method alone: `y` is then exact to `1e-9 |g_i|` times the longest gradient, and where the
cosines are close to singular, it may miss that too.
"""

from gramjd.aggregation.solvers.dual_cone import dual_cone

__all__ = ["dual_cone"]
