"""Score against cost: which arms are on the frontier, in figures and tables."""

import pytest

from gpt_jax.reports import study_costs, study_report
from tests import ablation_study
from tests.reports.test_study_report import build_study, sized

POINTS = [({'name': name}, cost, mean) for name, cost, mean in [('a', 1, 3.0), ('b', 2, 3.0), ('c', 2, 2.0)]]


@pytest.mark.parametrize('better, names', [('lower', ['a', 'c', 'e']), ('higher', ['a', 'd'])])
def test_the_frontier_has_what_no_other_beats_in_both(better, names):
  more = [({'name': 'd'}, 3, 4.0), ({'name': 'e'}, 4, 1.0)]
  assert study_costs.on_frontier(POINTS + more, better) == names


@pytest.fixture
def study(tmp_path):
  """A study whose best arm costs twice the FLOPs; the worst one costs three times."""
  planned = ablation_study.study()
  for arm in planned['arms']:
    arm['flops_per_token'] *= {'alibi': 2, 'none': 3}.get(arm['levels']['positions'], 1)
  return build_study(tmp_path, planned, ablation_study.rows(planned, tmp_path, samples=False))


def test_arms_on_the_frontier_are_marked(study):
  frontier = study_costs.frontiers(study)[study_costs.FLOPS]
  assert frontier[-1] == 'positions=alibi' and len(frontier) == 2
  table = study_costs.costs_table(study)
  marked = {row[0]: row[-1] for row in table.rows}
  assert table.header[-1] == 'on the frontier of'
  assert study_costs.FLOPS in marked['positions=alibi'] and not marked['positions=none']
  figures = study_costs.cost_figures(study)
  assert len(figures) == 4  # both costs, on a screen and on a phone
  assert all(name in figures[0] for name in ('alibi', 'none', 'var(--muted)', 'var(--first)'))
  assert 'on the frontier of' in study_report.render_markdown(study)


def test_times_of_several_machines_and_equal_costs_have_no_frontier(study):
  study.done[0]['result']['hardware'] = 'another'
  assert [*study_costs.frontiers(study)] == [study_costs.FLOPS]
  for arm in study.arms:
    arm['flops_per_token'] = 1e6
  assert study_costs.frontiers(study) == {} and study_costs.cost_figures(study) == []
  assert 'on the frontier of' not in study_costs.costs_table(study).header


def test_arms_that_do_not_compare_are_on_no_frontier(study):
  study.comparable.remove('positions=alibi')
  assert 'positions=alibi' not in study_costs.frontiers(study)[study_costs.FLOPS]


def test_each_setting_has_a_frontier_over_its_sizes(tmp_path):
  study = sized(tmp_path)
  for arm in study.arms:
    arm['flops_per_token'] = 6 * arm['parameters']
  assert len(study_costs.frontiers(study)[study_costs.FLOPS]) == 6  # each larger model is better
  assert all(label in study_costs.cost_figures(study)[0] for label in ('>rope<', '>alibi<'))
