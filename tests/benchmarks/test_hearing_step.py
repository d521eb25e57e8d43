"""The step of a model that learns to hear, ours and that of transformers and peft."""

import numpy as np
import pytest

from benchmarks import hearing_step
from gpt_jax.interop import huggingface
from gpt_jax.tokenizers import Tokenizers
from tests import tiny_runs
from tests.interop.test_interop import write
from tests.tokenizers.test_tokenizers import make


def test_documents_of_a_batch_hold_frames_and_then_targets():
  batch = hearing_step.make_batch(64, 300)
  is_frame_BT, is_target_BT = batch['frames_BTM'].any(-1), batch['loss_mask_BT'] > 0
  for b, targets in enumerate(np.resize(hearing_step.TARGETS, hearing_step.ROWS)):
    for segment in range(1, 1 + hearing_step.DOCUMENTS):
      places = np.flatnonzero(batch['segment_ids_BT'][b] == segment)
      np.testing.assert_array_equal(batch['positions_BT'][b, places], np.arange(16))
      frames, answer = (np.flatnonzero(x[b, places]) for x in (is_frame_BT, is_target_BT))
      assert len(frames) == hearing_step.FRAMES and len(answer) == targets
      assert frames.max() < answer.min() and answer.max() == 14  # the last token is the last target
  np.testing.assert_array_equal(batch['token_ids_BT'][:, 1:], batch['target_ids_BT'][:, :-1])


def test_a_small_base_is_frozen_and_the_rest_learns(tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    run, facts = hearing_step.ours()
  width, hidden, inputs, rank = 32, 128, hearing_step.WIDTH, hearing_step.RANK
  matrices = 4 * (width + width) + 2 * (width + hidden)  # sums of inputs and outputs
  assert facts['trained'] == rank * matrices + inputs * width + width * width
  assert run() < facts['losses'][2] < facts['losses'][0]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning', 'ignore::DeprecationWarning')
def test_losses_and_updates_equal_those_of_peft(tmp_path, tmp_path_factory):
  pytest.importorskip('transformers'), pytest.importorskip('peft')
  toks = Tokenizers.build(make('bytes'), specials=())
  write(tmp_path / 'source', 'qwen3', toks, context=64, mlp='geglu')
  huggingface.import_run(tmp_path / 'source', tmp_path / 'base')
  with tiny_runs.compiled_programs(tmp_path_factory):
    ours = hearing_step.ours(str(tmp_path / 'base'))[1]
  theirs = {
    f'torch, {labels=}': hearing_step.theirs(str(tmp_path / 'source'), labels=labels)[1] for labels in (0, 1)
  }
  assert hearing_step.check_equal({'gpt_jax': ours} | theirs) < 1e-4
  in_bfloat16 = hearing_step.theirs(str(tmp_path / 'source'), 'bfloat16')[1]
  np.testing.assert_allclose(in_bfloat16['losses'], ours['losses'], rtol=0.02)


def test_other_losses_and_sizes_are_reported():
  row = {'losses': [2.0, 1.0], 'trained': 5}
  close, equal = row | {'losses': [2.0, 1.0005]}, {'torch, labels': row}
  assert hearing_step.check_equal({'gpt_jax': row, 'torch': close} | equal) == pytest.approx(5e-4)
  with pytest.raises(AssertionError, match='of torch, labels'):
    hearing_step.check_equal({'gpt_jax': row, 'torch': row, 'torch, labels': close | {'losses': [3.0, 1.0]}})
  with pytest.raises(AssertionError, match='of torch'):
    hearing_step.check_equal({'gpt_jax': row, 'torch': row | {'losses': [2.0, 1.01]}})
  with pytest.raises(AssertionError, match='5 parameters against 6'):
    hearing_step.check_equal({'gpt_jax': row, 'torch': row | {'trained': 6}})
