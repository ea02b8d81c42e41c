"""Every error and warning that gramjd raises on purpose."""


class GramjdError(Exception):
    """Base of all errors raised on purpose by this library; catch it to catch them all."""


class LossError(GramjdError, ValueError):
    """The losses cannot be descended on: wrong shape or dtype, no graph, or not finite."""


class InputError(GramjdError, ValueError):
    """Another argument (parameters, options, data) is not one of those allowed."""


class GraphError(GramjdError, RuntimeError):
    """The autograd graph cannot be walked: freed, edited in place, or holding a node that cannot be called."""


class AggregatorError(GramjdError, ValueError):
    """An aggregator got a matrix or a vector that it cannot use, or could not solve for its weights."""


class BudgetError(GramjdError, MemoryError):
    """A step cannot be done within the memory budget that was given."""


class BackendError(GramjdError, RuntimeError):
    """The backend asked for cannot run: a package missing or too old, tensors of a device or dtype without a kernel."""


class RuleError(GramjdError, RuntimeError):
    """A rule for a node returned something that breaks its contract, or was registered wrongly."""


class DenseRowsWarning(UserWarning):
    """From some node on each loss needs a row of its own: right but slower. Given once per kind of node."""
