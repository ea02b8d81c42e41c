"""The same checks on a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.triton.checks import *  # noqa: F403
from tests.kernels.triton.convolution_checks import *  # noqa: F403
from tests.kernels.triton.cross_checks import *  # noqa: F403
from tests.kernels.triton.norms_checks import *  # noqa: F403
from tests.kernels.triton.rectangle_checks import *  # noqa: F403
from tests.kernels.triton.segments_checks import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
