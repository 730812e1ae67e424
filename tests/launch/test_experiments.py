"""Every experiment of the embedded world can be built, and every key of its config is read by some code."""

import pytest

from pidiff_jax.runs.training import build_parts
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.build import loop_settings
from pidiff_jax.train.plan import make_plan
from tests.launch.experiments import EMBEDDED, get_config
from tests.launch.recorded_config import RecordedConfig


@pytest.mark.parametrize(("name", "part"), EMBEDDED, ids=lambda value: value or "")
def test_every_key_is_read_and_every_parameter_has_its_group(name, part):
    recorded = RecordedConfig(get_config(name, part))
    settings, found = loop_settings(recorded), build_parts(recorded)
    assert recorded.unread() == []
    plan = make_plan(found.experiment, settings, make_mesh(settings.mesh))
    assert plan.parameter_table.count("\n") >= 2
