"""One command for a machine with a GPU that is lent for minutes: what is right, how fast, how much memory.

    python -m gramjd.profiling.gpu --minutes 9 --out runs/gpu
    python -m gramjd.profiling.gpu --dry --out runs/gpu       # every section in tiny form, on a CPU

The sections run in order of value, each in a process and a time box of its own, and write a file as they go. A section
that is cut, or that ends in a fault of the device, keeps the rows it has written and leaves the others as they are.
"""
