"""The comparisons with independent oracles once more, on thousands of drawn Gramians each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from . import test_closed_forms as closed_forms
from . import test_conic as conic
from . import test_coordinatewise as coordinatewise
from . import test_dual_cone as dual_cone
from . import test_newton as newton
from . import test_pcd as pcd
from . import test_random as random
from . import test_stepwise as stepwise

ORACLES = [
    dual_cone.test_optimal_on_any_gramian,
    dual_cone.test_any_nonnegative_lower_bounds,
    conic.test_mgda_is_the_nearest_point_of_the_hull,
    conic.test_mgda_passes_its_optimality_test,
    conic.test_cagrad_is_optimal_by_duality,
    conic.test_dualproj_passes_the_optimality_test,
    closed_forms.test_imtlg_through_the_pseudo_inverse_of_j,
    closed_forms.test_aligned_mtl_through_the_singular_values_of_j,
    closed_forms.test_config_as_stated_on_the_unit_gradients,
    closed_forms.test_krum_by_its_definition,
    closed_forms.test_fairgrad_solves_its_equation,
    random.test_pcgrad_is_the_published_loop_with_the_same_orders,
    stepwise.test_modo_is_the_published_iteration,
    newton.test_gauss_newton_is_damped_least_squares,
    newton.test_sven_is_the_truncated_pseudo_inverse,
    pcd.test_is_the_quadratic_program_on_the_gradients,
    coordinatewise.test_graddrop_is_its_definition,
    coordinatewise.test_trimmed_mean_is_scipys,
]


@pytest.mark.slow
@pytest.mark.parametrize("test", ORACLES, ids=lambda test: test.__name__)
def test_on_thousands(test):
    drawn = test.hypothesis
    again = given(**drawn._given_kwargs)(drawn.inner_test)
    settings(derandomize=True, database=None, deadline=None, max_examples=3000)(again)()
