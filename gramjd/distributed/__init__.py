"""One Gramian over the losses of all ranks of a process group.

ranks.py     what all ranks decide together, and the same error on all of them
wire.py      a parameter's Jacobian as bytes
exchange.py  products of the rows of different ranks, parameter by parameter
gradients.py updates summed over ranks
step.py      `gram_backward(group=...)` and `gramian(group=...)`
"""
