"""Measures of sounds, each against a slow or a known answer."""

import math

import numpy as np
import pytest

from gpt_jax.evaluation import audio_metrics

rng = np.random.default_rng(0)


def test_log_mel_of_a_tone():
  rate = 8000
  time = np.arange(rate) / rate
  mel = audio_metrics.log_mel(0.01 * np.sin(2 * np.pi * 1000 * time), rate)
  assert mel.shape == (80, 40)
  edges = 700 * (10 ** (np.linspace(0, np.log10(1 + 4000 / 700), 42)) - 1)
  band = mel[40].argmax()
  assert edges[band] < 1000 < edges[band + 2]
  louder = audio_metrics.log_mel(0.1 * np.sin(2 * np.pi * 1000 * time), rate)
  assert louder == pytest.approx(mel, abs=1e-6)
  assert np.isfinite(audio_metrics.log_mel(np.zeros(10), rate)).all()


def test_mel_filters_sum_to_one():
  for bands in (40, 80):
    weights = audio_metrics.mel_filters(8000, 256, bands)
    assert weights.sum(1) == pytest.approx(np.ones(bands))
    assert (weights >= 0).all()


def test_warping_against_the_recursion():
  cost = rng.random((6, 9))
  best = {(0, 0): (0.0, 0)}
  for i in range(1, 7):
    for j in range(1, 10):
      before = [best[k] for k in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if k in best]
      total, steps = min(before, key=lambda pair: pair[0], default=(math.inf, 0))
      best[i, j] = total + cost[i - 1, j - 1], steps + 1
  total, steps = best[6, 9]
  assert audio_metrics.dtw_mean_cost(cost) == pytest.approx(total / steps)


def test_cepstral_distortion():
  mel = rng.normal(size=(30, 40))
  assert audio_metrics.mcd_dtw(mel, mel) == pytest.approx(0, abs=1e-5)
  assert audio_metrics.mcd_dtw(mel, np.repeat(mel, 2, 0)) == pytest.approx(0, abs=1e-5)
  # One cosine coefficient that differs by 1 throughout: 10 / ln 10 * sqrt 2 dB.
  place = math.sqrt(2 / 40) * np.cos(np.pi * 3 * (2 * np.arange(40) + 1) / 80)
  flat = np.zeros((5, 40))
  assert audio_metrics.mcd_dtw(flat, flat + place) == pytest.approx(10 / math.log(10) * math.sqrt(2))
  assert audio_metrics.mcd_dtw(flat, flat + 7) == pytest.approx(0, abs=1e-5)  # level is no content


def test_mel_rmse():
  assert audio_metrics.mel_rmse(np.zeros((4, 2)), np.full((5, 2), 3.0)) == 3


@pytest.mark.parametrize('hertz', [80, 110, 220, 330])
def test_pitch_of_tones(hertz):
  time = np.arange(4000) / 8000
  tone = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in (1, 2, 3))
  actual = audio_metrics.pitch(tone, 8000)[:-5]  # the last frames are cut
  assert actual == pytest.approx(np.full(len(actual), hertz), rel=0.03)


def test_pitch_error():
  time = np.arange(4000) / 8000
  noise = np.random.default_rng(0).normal(size=4000)
  assert (audio_metrics.pitch(noise, 8000) > 0).mean() < 0.1
  assert not audio_metrics.pitch(np.zeros(100), 8000).any()
  low, high = (audio_metrics.pitch(np.sin(2 * np.pi * f * time), 8000) for f in (100, 200))
  assert audio_metrics.pitch_error(low, low) == (0, 0)
  semitones, share = audio_metrics.pitch_error(np.append(high, [0.0] * len(high)), low)
  assert semitones == pytest.approx(12, abs=0.5) and share == pytest.approx(0.5, abs=0.05)
  assert np.isnan(audio_metrics.pitch_error(low, 0 * low)[0])
