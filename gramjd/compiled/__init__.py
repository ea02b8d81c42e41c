"""The compiled step: forward pass, walk, weights and update traced once and run as one graph.

held.py      the tensors that a step reads and changes: of modules and of an optimizer
guards.py    under which circumstances a traced step may run again
trace.py     a step on tensors without numbers, written down
simplify.py  the same graph with fewer calls
optimizer.py optimizers whose rate is a tensor
weights.py   the aggregator as one operation of the graph
check.py     a compiled step against an eager one
run.py       the ways to run a graph
capture.py   any step on a GPU as one CUDA graph, without a trace
region.py    `torch.compile(model, backend="gramjd")`: a compiled model whose layers a walk sees
step.py      `gramjd.compile`: first eager, then compiled, one graph per circumstance
_compilers.py  what all of these rely on in private parts of PyTorch
"""
